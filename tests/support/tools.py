"""Loads the scripts under tools/, which are no package, for the tests."""

from types import ModuleType

from support.scripts import ROOT, load_script

__all__ = ["ROOT", "TOOLS", "load_tool"]
TOOLS = ROOT / "tools"


def load_tool(name: str) -> ModuleType:
    """The script tools/NAME.py as a module; it finds its neighbours, as it does when called."""
    return load_script(f"tools/{name}.py")

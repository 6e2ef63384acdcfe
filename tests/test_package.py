"""The package as others meet it: what an import costs, who may import whom, what a wheel holds."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import conadv

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "conadv"


# -- what an import brings ---------------------------------------------------------------------


def requirements(names: list[str]) -> set[str]:
    """Top-level modules of the distributions and of everything they require."""
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [re.split(r"[\s;<>=!~\[(]", n)[0] for n in needed if "extra ==" not in n]
    owners = importlib.metadata.packages_distributions()
    return {
        module
        for module, distributions in owners.items()
        if any(d.lower().replace("_", "-") in seen for d in distributions)
    }


def imported(code: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tests",
        timeout=120,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    # Part of the standard library, but each platform has one of its own name.
    return {name for name in loaded if not name.startswith("_sysconfigdata")}


@pytest.mark.parametrize("module", ["conadv", "conadv.optim", "conadv.planning"])
def test_the_library_imports_torch_and_numpy_alone(module: str) -> None:
    before = imported("import torch, numpy")
    after = imported(f"import {module}")
    allowed = before | {"conadv"} | set(sys.stdlib_module_names) | requirements(["torch", "numpy"])
    assert after - allowed == set()


# -- the layers --------------------------------------------------------------------------------

CORE = {"attack", "geometry", "branches", "schedules", "adversary", "overlap", "errors"}
# What the core's files share; a private file at the top is the core's.
CORE |= {path.stem for path in PACKAGE.glob("_*.py") if not path.stem.startswith("__")}
LAYERS: dict[str, set[str]] = {
    # What a room may import, besides itself. The core stands on nothing.
    **{name: CORE for name in CORE},
    "optim": {"errors"},
    "data": {"errors"},
    "analysis": CORE | {"data", "optim"},
    "planning": CORE,
    "precision": {"errors"},
    "distributed": {"errors"},
    "integrations": CORE | {"optim"},
    # A report reads run folders: it never needs the code that made the run.
    "report": {"errors"},
    "training": CORE | {"optim", "data", "analysis", "precision", "recipes", "distributed"},
    "bench": CORE | {"optim", "data", "precision", "training", "analysis"},
    "study": CORE | {"training", "report", "analysis", "data", "optim"},
}
"""Rooms that are not named here (cli, commands, quickstart) stand on top and may import any."""

TORCH_ONLY = CORE | {"optim"}
"""Rooms whose only dependencies outside the standard library are torch and numpy."""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, also inside functions."""
    package = ["conadv", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    room = room_of(path)
    names = imports_of(path)
    outside = {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - {"conadv"}
    rooms = {n.split(".")[1] for n in names if n.startswith("conadv.")}
    rooms = {r for r in rooms if (PACKAGE / r).is_dir() or (PACKAGE / f"{r}.py").exists()}
    if room in LAYERS:
        assert rooms - LAYERS[room] - {room} == set(), f"{room} may not import these"
    if room in TORCH_ONLY or room == "__init__":
        assert outside - {"torch", "numpy"} == set(), f"{room} stands on torch and numpy"
    if room == "__init__":
        assert rooms <= CORE


def test_every_core_file_is_under_the_rule() -> None:
    """A new file beside the core ones has to be given a layer here."""
    top = {"cli", "commands", "quickstart", "recipes", "__init__", "__main__"}
    assert {room_of(path) for path in sources()} - set(LAYERS) - top == set()


def test_the_rule_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "optim" / "lars.py"
    file.parent.mkdir()
    file.write_text("from ..training import recipe\nfrom . import b\ndef f():\n    import numpy\n")
    assert imports_of(file) == {"conadv.training.recipe", "conadv.optim.b", "numpy"}


# -- names and metadata ------------------------------------------------------------------------


def test_public_names_are_few_documented_and_there() -> None:
    assert len(conadv.__all__) <= 14
    assert sorted(conadv.__all__) == list(conadv.__all__)
    reference = (ROOT / "docs" / "reference.md").read_text()
    for name in conadv.__all__:
        assert getattr(conadv, name).__doc__, f"{name} has no docstring"
        assert re.search(rf"`{name}\b", reference), f"{name} is not in docs/reference.md"


def test_version_and_metadata_agree() -> None:
    metadata = importlib.metadata.metadata("conadv")
    assert conadv.__version__ == metadata["Version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    plain = [r for r in importlib.metadata.requires("conadv") or [] if "extra ==" not in r]
    assert {re.split(r"[<>=]", r)[0] for r in plain} == {"torch", "numpy"}


# -- what is shipped ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that the build backend makes of this folder."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, the build backend, is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    [file] = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_package_and_its_data(wheel: list[str]) -> None:
    names = set(wheel)
    assert "conadv/py.typed" in names
    for pattern in (
        "recipes/*.yaml",
        "studies/*.yaml",
        "planning/*.yaml",
        "training/*.yaml",
        "data/assets/*",
        "report/templates/*",
        "report/*.j2",
    ):
        for path in PACKAGE.glob(pattern):
            if path.is_file() and path.suffix not in {".pyc"}:
                assert f"conadv/{path.relative_to(PACKAGE)}" in names
    assert any(n.startswith("conadv/recipes/") and n.endswith(".yaml") for n in names)
    assert any(n.startswith("conadv/data/assets/") for n in names)
    assert {n.rpartition("/")[2] for n in names if "/licenses/" in n} == {"LICENSE", "NOTICE"}


def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    strays = [n for n in wheel if not n.startswith(("conadv/", "conadv-"))]
    assert strays == []
    assert not [n for n in wheel if n.endswith(".pyc") or "__pycache__" in n]

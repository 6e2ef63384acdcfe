"""What to say where the trainer that a file is for is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from conadv.errors import install_command


def need(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra brings.

    Raises:
        ModuleNotFoundError: in one line, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"conadv.integrations.{extra} needs {missing}, which is not installed. "
            f"Type: {install_command(extra)}",
            name=error.name,
        ) from None

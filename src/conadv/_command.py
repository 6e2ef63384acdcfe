"""The command that started this process, as a reader of a result would type it."""

import os
import shlex
import sys
from pathlib import Path


def as_typed() -> str:
    """Program and arguments, without the folders of the machine that ran it."""
    return shlex.join([*_program(), *sys.argv[1:]])


def _program() -> list[str]:
    path = Path(sys.argv[0])
    if path.suffix != ".py" or path.stem == "__main__":
        return ["conadv"]
    relative = os.path.relpath(path)
    return ["python", path.name if relative.startswith("..") else Path(relative).as_posix()]

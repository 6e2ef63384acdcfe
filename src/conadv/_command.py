"""The command that started this process, as a reader of a result would type it."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_INSTEAD: ContextVar[str | None] = ContextVar("command", default=None)


def as_typed() -> str:
    """Program and arguments, without the folders of the machine that ran it."""
    return _INSTEAD.get() or shlex.join([*_program(), *sys.argv[1:]])


@contextmanager
def standing_for(command: str) -> Iterator[None]:
    """What is made inside is remade by another command than this process's, as in a study."""
    token = _INSTEAD.set(command)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def _program() -> list[str]:
    path = Path(sys.argv[0])
    if path.suffix != ".py" or path.stem == "__main__":
        return ["conadv"]
    relative = os.path.relpath(path)
    return ["python", path.name if relative.startswith("..") else Path(relative).as_posix()]

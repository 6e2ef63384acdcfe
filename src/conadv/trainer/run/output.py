"""What is printed is never worth a run: a terminal, pipe or disk that is gone stops nothing."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console

from conadv._words import fitted


class Steady:
    """A text stream whose writes never fail.

    What cannot be written is dropped, and when writing works again a line says how much was.

    Args:
        stream: to write to; everything but writing is left to it.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._dropped = 0

    def write(self, text: str) -> int:
        """Write, or count as dropped."""
        note = f"[{self._dropped} pieces of output could not be written]\n" * bool(self._dropped)
        try:
            self._stream.write(note + text)
            self._stream.flush()
        except (OSError, ValueError):  # gone, full, or closed
            self._dropped += 1
            return len(text)
        self._dropped = 0
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady(console: Console) -> Console:
    """Make a console's writes never fail; the same console."""
    if not isinstance(console.file, Steady):
        console.file = cast(IO[str], Steady(console.file))
    return console


def say(console: Console, text: str) -> None:
    """Print plain text: in the width of a terminal, elsewhere in whole lines."""
    width = console.width if console.is_terminal else None
    console.print(fitted(text, width), highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line on standard error, if that is possible."""
    Steady(sys.stderr).write(f"{text}\n")


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Make standard output and standard error never fail, for everybody who prints."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(Any, Steady(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _let_go(stream)


def _let_go(stream: IO[str]) -> None:
    """What cannot be written by now must not be complained of while Python exits."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""Files of one JSON object per line: written beside training, and read by everybody else."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from conadv._files import write_text
from conadv.errors import RunFolderError


class NoLines:
    """What ranks other than the first write: nothing."""

    def append(self, line: dict[str, Any]) -> None:
        """Append nothing."""

    def sync(self) -> None:
        """Flush nothing."""

    def close(self) -> None:
        """Close nothing."""


class JsonLines:
    """An append-only file of one JSON object per line, each handed to the system at once.

    Lines are cheap and survive a killed process; :meth:`sync` makes them survive a power cut, and
    is called before each checkpoint so that the file is not behind the checkpoint. Lines that the
    disk does not take, because it is full or away, wait in memory and are tried again with each
    further line.

    Args:
        path: The file to append to.
        say: Told once when lines begin to wait, and once when all are written.

    Raises:
        RunFolderError: The file cannot be opened.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._say = say
        self._waiting = bytearray()
        self._told = False
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror or error}.") from error

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        self._waiting += json.dumps(line).encode() + b"\n"
        self._write()

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        self._write()
        with contextlib.suppress(OSError):  # told with the next line that cannot be written
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; calling it twice does nothing."""
        if self._file < 0:
            return
        self._write()
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = -1
        if self._waiting:
            count = self._waiting.count(b"\n")
            self._say(
                f"warning: {count} lines of {self.path} could not be written and are lost. Free "
                "some space; the run goes on from its last checkpoint with --resume and writes "
                "them again from there."
            )

    def _write(self) -> None:
        try:
            while self._waiting:  # the disk may take a part of a line: go on behind it
                del self._waiting[: os.write(self._file, self._waiting)]
        except OSError as error:
            if not self._told:
                self._told = True
                self._say(
                    f"warning: {self.path} cannot be written ({error.strerror or error}). "
                    "Training goes on; the lines wait in memory until it can."
                )
            return
        if self._told:
            self._told = False
            self._say(f"{self.path} is written again; no line is missing.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, leaving out those that a kill or a power cut damaged."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    if isinstance(found := json.loads(line), dict):
                        yield found


def truncate_after(path: Path, step: int) -> int:
    """Drop the lines of later steps, so that a resumed run writes them once and only once.

    Args:
        path: A file of JSON lines, each with a ``step``; a missing file is left missing.
        step: The last step to keep.

    Returns:
        The last step in the file then; 0 without one.
    """
    if not path.exists():
        return 0
    kept = [line for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept[-1]["step"] if kept else 0

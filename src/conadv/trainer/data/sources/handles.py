"""Open files that survive forks, pickling and threads."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conadv.errors import DataError

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: enough to notice a changed file."""

LIMIT = 64
"""Files that a process keeps open; systems commonly allow 1,024, and shards may be more."""


def stamp_of(path: Path) -> Stamp:
    """The present stamp of a file.

    Raises:
        DataError: there is no such file, or it may not be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


def unreadable(path: Path | str, error: OSError) -> DataError:
    """The error for a file that the system does not give."""
    return DataError(
        f"{path} could not be read ({error.strerror or error}): check that it exists, that you "
        "may read it, and that the disk is well."
    )


class _OpenFile:
    """A descriptor that closes itself when nobody reads from it any more.

    A thread that reads holds a reference, so dropping a file from the table never closes it under
    a read.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _OfProcess:
    """What belongs to one process: its open files, and a lock that no fork has left held."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.open: OrderedDict[int, _OpenFile] = OrderedDict()


class Handles:
    """Reads pieces of files.

    Args:
        paths: the files; what is read is named by its position here.
        stamps: what the files were when their index was made, or None: not checked. A file that
            has changed since would give wrong bytes without any error.
    """

    def __init__(self, paths: Sequence[Path], stamps: Sequence[Stamp] | None = None) -> None:
        self.paths = list(paths)
        self._stamps = None if stamps is None else list(stamps)
        self._mine: _OfProcess | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mine": None}

    def read(self, file: int, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on.

        Raises:
            DataError: the file cannot be opened or read, has changed, or ends before.
        """
        path = self.paths[file]
        try:
            opened = self._open(file)
            data = self._read(opened.descriptor, offset, size)
        except OSError as error:
            raise unreadable(path, error) from error
        if len(data) < size:
            raise DataError(
                f"{path} ends within what is read ({size:,} bytes from {offset:,} on): it has "
                "been cut off. Fetch or copy it again."
            )
        return data

    def _open(self, file: int) -> _OpenFile:
        mine = self._mine
        if mine is None or mine.pid != os.getpid():
            mine = self._mine = _OfProcess()
        with mine.lock:
            opened = mine.open.get(file)
            if opened is None:
                opened = _OpenFile(self.paths[file])
                self._check(file, opened)
                mine.open[file] = opened
                if len(mine.open) > LIMIT:
                    mine.open.popitem(last=False)
            mine.open.move_to_end(file)
        return opened

    def _check(self, file: int, opened: _OpenFile) -> None:
        if self._stamps is None:
            return
        status = os.fstat(opened.descriptor)
        if (status.st_size, status.st_mtime_ns) != tuple(self._stamps[file]):
            raise DataError(
                f"{self.paths[file]} has changed since it was indexed: open the source again, and "
                "do not write to its files while they are in use."
            )

    def _read(self, descriptor: int, offset: int, size: int) -> bytes:
        if not hasattr(os, "pread"):  # Windows: the position of the file is shared by threads
            assert self._mine is not None
            with self._mine.lock:
                os.lseek(descriptor, offset, os.SEEK_SET)
                return _all(lambda count, _: os.read(descriptor, count), size)
        return _all(lambda count, done: os.pread(descriptor, count, offset + done), size)


def _all(read: Callable[[int, int], bytes], size: int) -> bytes:
    """Read until there is all of it; network file systems may give less at once."""
    data = read(size, 0)
    while 0 < len(data) < size:
        more = read(size - len(data), len(data))
        if not more:
            break
        data += more
    return data

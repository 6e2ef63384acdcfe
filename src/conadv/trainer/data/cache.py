"""Where fetched data live, and how files get there whole or not at all."""

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from conadv._files import remove_partial, write_atomic
from conadv.errors import DataError

Say = Callable[[str], None]
"""A function that is told a line of text at every stage of something slow."""

LOCK = ".conadv.lock"
_SCRATCH = ".conadv-download-"
_held = threading.local()
"""Folders that a thread has the lock of."""


def cache_dir() -> Path:
    """$CONADV_DATA, or the platform's cache folder for conadv."""
    chosen = os.environ.get("CONADV_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "conadv"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "conadv"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conadv"


def say_to_stderr(line: str) -> None:
    """Print a line where it mixes with no output that a program reads."""
    print(line, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, and say what to do where the disk refuses.

    Args:
        path: the file that comes to be, or is replaced.
        write: puts the content into an open file.

    Raises:
        DataError: the disk is full, or the folder may not be written to.
    """
    try:
        write_atomic(path, write)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder for what is being fetched; it goes away, whatever happens."""
    with tempfile.TemporaryDirectory(
        prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


@contextmanager
def locked(folder: Path, say: Say, wait_seconds: float = 1800) -> Iterator[None]:
    """One process at a time in a folder; the lock of a process that died is free again.

    A thread that has the lock may ask for it again.

    What dead processes left half done in the folder is removed. Where the file system knows no
    locks, processes may fetch the same thing twice, but each file is still whole.

    Raises:
        DataError: another process held it all the time, or the folder may not be written to.
    """
    mine: set[Path] = _held.__dict__.setdefault("folders", set())
    if folder in mine:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:  # closing the file gives the lock back
        deadline = time.monotonic() + wait_seconds
        told = False
        while (state := _try_lock(file.fileno())) == "held":
            if not told:
                say(f"waiting for another process that works in {folder}")
                told = True
            if time.monotonic() > deadline:
                raise DataError(
                    f"Another process has been working in {folder} for {wait_seconds:.0f} s: wait "
                    "for it, or end it."
                )
            time.sleep(0.1)
        if state == "ours":
            _remove_leftovers(folder)
        mine.add(folder)
        try:
            yield
        finally:
            mine.remove(folder)


def _try_lock(descriptor: int) -> str:
    try:
        import fcntl
    except ImportError:  # Windows
        return "unknown"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:  # some network file systems
        return "unknown"
    return "ours"


def _remove_leftovers(folder: Path) -> None:
    for left in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):
        remove_partial(folder)


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} could not be written ({error.strerror or error}): free some disk, or name "
        "another folder in CONADV_DATA."
    )

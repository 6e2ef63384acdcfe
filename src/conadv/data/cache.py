"""Where fetched data live, and how files get there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conadv.errors import DataError


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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename: readers see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} could not be written ({error.strerror or error}): free some disk, or name "
            "another folder in CONADV_DATA."
        ) from error


@contextmanager
def locked(folder: Path, wait_seconds: float = 1800) -> Iterator[None]:
    """One process at a time in a folder; the lock of a process that died is free again.

    Raises:
        DataError: another process held it all the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise DataError(
                    f"Another process has been working in {folder} for {wait_seconds:.0f} s: wait "
                    "for it, or end it."
                )
            time.sleep(0.2)
        yield  # closing the file gives the lock back


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: without locks, atomic renames still keep files whole
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""Writing files so that a crash, a kill or a full disk never leaves half of one behind."""

import json
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIX = ".partial"


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    A reader sees the old file or the whole new one, however many processes and machines write it
    at once. When ``write`` or the disk fails, the temporary file is removed, ``path`` keeps what it
    held, and the exception goes on to the caller.

    Args:
        path: The file to create or replace. Its folder is made if it is not there.
        write: Called once with a binary file object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; of names that are not UTF-8 the bytes stand as escapes."""
    write_atomic(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_beside(path: Path, value: Any) -> None:
    """Write JSON beside a run that one may perhaps only read; a warning says where that failed.

    What was measured is worth more than its copy on the disk: the caller goes on with it.
    """
    try:
        write_json(path, value)
    except OSError as error:
        warnings.warn(
            f"could not write {path}: {error.strerror or error}. The figures are returned and "
            "shown all the same; they are kept nowhere else.",
            stacklevel=3,
        )


def link(path: Path, name: Path) -> None:
    """Give a file a second name in its folder, replacing what had it; a copy where links fail."""
    temporary = _temporary(name)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def is_utf8(path: Path) -> bool:
    """Whether a path can be written as UTF-8."""
    return str(path).encode(errors="ignore").decode() == str(path)


@contextmanager
def in_utf8(folder: Path) -> Iterator[Path]:
    """A path to a folder for libraries that take none but UTF-8: its own where that will do.

    Otherwise a link to it, for the length of the block.
    """
    if is_utf8(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="conadv-") as place:
        name = Path(place) / "folder"
        name.symlink_to(folder.resolve(), target_is_directory=True)
        yield name


def is_partial(path: Path) -> bool:
    """Whether a file is what an interrupted write left behind, by its name."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def remove_partial(folder: Path) -> None:
    """Remove what interrupted writes left behind."""
    for path in filter(is_partial, folder.iterdir()):
        path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name}.{writer}{_SUFFIX}")


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

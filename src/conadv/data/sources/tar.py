"""Where the members of a tar archive lie: read once from its headers, without its content."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from conadv.data.sources.handles import Stamp, stamp_of, unreadable
from conadv.data.sources.source import Names, pack_names
from conadv.errors import DataError

REPORT_SECONDS = 20.0
TEXT = ".cls"
"""Members of this ending are labels. Their text is kept in the index, because reading a million of
them one by one later would touch every part of the archives again."""
TEXT_BYTES = 64
_BLOCK = 512

Found = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Members of one archive, in its order. All arrays have shape (members,)."""

    stamp: Stamp
    names: Names
    offsets: npt.NDArray[np.int64]
    """Where the content begins, in bytes from the start of the archive."""
    sizes: npt.NDArray[np.int64]
    """Of the content, in bytes."""
    texts: Names
    """Content of the members that are labels, empty for all others."""


def index_tar(path: Path, found: Found | None = None) -> TarIndex:
    """Find the files in an archive, and in archives within it.

    A member of ``a.tar`` in the archive is called ``a/member``.

    Args:
        path: an archive that is not compressed.
        found: called now and then with the number of members found so far.

    Raises:
        DataError: it cannot be read, is no tar archive, damaged, or cut off.
    """
    stamp = stamp_of(path)
    names: list[str] = []
    places: list[tuple[int, int]] = []
    texts: list[bytes] = []
    told = time.monotonic()
    try:
        with path.open("rb") as file:
            for name, offset, size, text in _members(file, 0, ""):
                names.append(name)
                places.append((offset, size))
                texts.append(text)
                if found is not None and time.monotonic() - told > REPORT_SECONDS:
                    told = time.monotonic()
                    found(len(names))
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is damaged, cut off, or no plain tar archive ({error}): fetch or copy it "
            "again, and do not compress it."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return TarIndex(
        stamp,
        pack_names(names),
        np.ascontiguousarray(offsets),
        np.ascontiguousarray(sizes),
        np.array(texts, dtype=np.bytes_) if texts else np.zeros(0, dtype="S1"),
    )


def _members(file: IO[bytes], start: int, prefix: str) -> Iterator[tuple[str, int, int, bytes]]:
    """(name, offset from the start of the outermost archive, size, text) of every plain file."""
    # "r:" refuses compressed archives: nothing in them has a place of its own.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                continue
            name, offset = prefix + member.name, start + member.offset_data
            if member.name.endswith(".tar"):
                inner = tar.extractfile(member)
                assert inner is not None  # it is a plain file
                yield from _members(inner, offset, name.removesuffix(".tar") + "/")
                continue
            text = b""
            if member.name.endswith(TEXT) and member.size <= TEXT_BYTES:
                content = tar.extractfile(member)
                assert content is not None
                text = content.read()
            yield name, offset, member.size, text
        _check_end(file, tar.offset)


def _check_end(file: IO[bytes], offset: int) -> None:
    """See that an archive ends in zeros: tarfile takes a missing or damaged header for the end."""
    file.seek(offset, io.SEEK_SET)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError(f"it ends at byte {offset:,} without an end mark")
    if any(block):
        raise tarfile.ReadError(f"no header at byte {offset:,}")

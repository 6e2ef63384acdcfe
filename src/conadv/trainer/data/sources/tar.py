"""Where the members of a tar archive lie: read once from its headers, without its content."""

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, cache_dir, locked, write_whole
from conadv.trainer.data.sources.handles import Stamp, stamp_of, unreadable
from conadv.trainer.data.sources.source import Names, pack_names, unpack_name

REPORT_SECONDS = 20.0
TEXT = ".cls"
"""Members of this ending are labels. Their text is kept in the index, because reading a million of
them one by one later would touch every part of the archives again."""
TEXT_BYTES = 64
_BLOCK = 512
_DEEPEST = 1
"""Archives within archives that are followed; ImageNet's are one deep."""

Found = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Members of one archive, in its order. All arrays have shape (members,)."""

    stamp: Stamp
    names: Names
    offsets: npt.NDArray[np.int64]
    """Where the content begins, in bytes from the start of the archive."""
    sizes: npt.NDArray[np.int64]
    """Sizes of the content, in bytes."""
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


def _members(
    file: IO[bytes], start: int, prefix: str, depth: int = 0
) -> Iterator[tuple[str, int, int, bytes]]:
    """(name, offset from the start of the outermost archive, size, text) of every plain file.

    A hard link is the file that it names, which stands before it.
    """
    places: dict[str, tuple[int, int, bytes]] = {}
    # "r:" refuses compressed archives: nothing in them has a place of its own.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name, offset = prefix + member.name, start + member.offset_data
            if member.islnk() and member.linkname in places:
                yield name, *places[member.linkname]
                continue
            if not member.isreg() or member.issparse():
                continue
            if member.name.endswith(".tar"):
                if depth == _DEEPEST:
                    raise tarfile.ReadError(f"{name} is an archive in an archive in an archive")
                inner = tar.extractfile(member)
                assert inner is not None  # it is a plain file
                yield from _members(inner, offset, name.removesuffix(".tar") + "/", depth + 1)
                continue
            text = b""
            if member.name.lower().endswith(TEXT) and member.size <= TEXT_BYTES:
                content = tar.extractfile(member)
                assert content is not None
                text = content.read()
            places[member.name] = offset, member.size, text
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


INDEX = ".conadv-index.npz"
_FORMAT = 2
_THREADS = 8
"""Archives indexed at once: on disks behind a network nearly all the time is waiting."""
WAIT_SECONDS = 7200.0

Indexes = dict[str, TarIndex]


def tar_indexes(folder: Path, names: Sequence[str], say: Say) -> Indexes:
    """The index of every named archive of a folder.

    It is read from the folder's index file, or from that in `cache_dir` where the folder may not
    be written to. Archives whose size or time of change differ are indexed again, and only those.
    Of several processes one works, and the others wait and read.

    Raises:
        DataError: an archive is missing, damaged or cut off.
    """
    stamps = {name: stamp_of(folder / name) for name in names}
    other = elsewhere(folder)

    def known() -> Indexes:
        return {
            name: index
            for place in (other, folder)
            for name, index in _load(place / INDEX).items()
            if name not in stamps or index.stamp == stamps[name]
        }

    kept = known()
    if stamps.keys() <= kept.keys():
        return {name: kept[name] for name in names}
    place = index_place(folder)
    with ExitStack() as stack:
        writable = True
        try:
            stack.enter_context(locked(place, say, WAIT_SECONDS))
        except DataError as error:
            say(f"the index will not be kept: {error}")
            writable = False
        kept = known()  # another process may have made it meanwhile
        missing = [name for name in names if name not in kept]
        if missing:
            kept.update(_build(folder, missing, say))
            if writable:
                _keep(place, {n: i for n, i in kept.items() if (folder / n).exists()}, say)
    return {name: kept[name] for name in names}


def index_place(folder: Path) -> Path:
    """Where what is known of a folder's archives is kept: beside them if that may be written."""
    return folder if os.access(folder, os.W_OK) else elsewhere(folder)


def elsewhere(folder: Path) -> Path:
    """Where the index of a folder lies that may not be written to."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_dir() / "indexes" / key


def _build(folder: Path, names: Sequence[str], say: Say) -> Indexes:
    total = sum((folder / name).stat().st_size for name in names)
    what = names[0] if len(names) == 1 else f"{len(names):,} archives"
    say(f"indexing {what} in {folder} ({total / 1e9:,.1f} GB), once; the headers alone are read")

    def index(name: str) -> TarIndex:
        return index_tar(folder / name, lambda count: say(f"{name}: {count:,} files so far"))

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(index, names), strict=True))


def _keep(place: Path, indexes: Indexes, say: Say) -> None:
    arrays: dict[str, Any] = {
        "format": np.array(_FORMAT),
        "files": pack_names(list(indexes)),
        "stamps": np.array([i.stamp for i in indexes.values()], dtype=np.int64),
        "counts": np.array([len(i.names) for i in indexes.values()], dtype=np.int64),
    }
    for part in ("names", "offsets", "sizes", "texts"):
        arrays[part] = np.concatenate([getattr(i, part) for i in indexes.values()])
    try:
        write_whole(place / INDEX, lambda file: np.savez_compressed(file, **arrays))
    except DataError as error:  # slower the next time, but nothing is wrong
        say(f"the index is not kept: {error}")


def _load(path: Path) -> Indexes:
    """What an index file holds; nothing if there is none, or it is damaged or of another format."""
    # A damaged archive of arrays raises almost anything. The file can be made again at any time.
    with suppress(Exception), path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        if int(kept["format"]) != _FORMAT:
            return {}
        ends = np.cumsum(kept["counts"])
        whole = {part: kept[part] for part in ("names", "offsets", "sizes", "texts")}
        if any(len(array) != ends[-1] for array in whole.values()):
            return {}
        parts = {part: np.split(array, ends[:-1]) for part, array in whole.items()}
        stamps = kept["stamps"].tolist()
        return {
            unpack_name(name): TarIndex(
                (stamps[i][0], stamps[i][1]),
                parts["names"][i],
                parts["offsets"][i],
                parts["sizes"][i],
                parts["texts"][i],
            )
            for i, name in enumerate(kept["files"].tolist())
        }
    return {}

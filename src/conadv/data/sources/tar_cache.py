"""The index of a folder's archives, kept in one small file so that it is made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conadv.data.cache import Say, cache_dir, locked, write_whole
from conadv.data.sources.handles import stamp_of
from conadv.data.sources.source import pack_names, unpack_name
from conadv.data.sources.tar import TarIndex, index_tar
from conadv.errors import DataError

INDEX = ".conadv-index.npz"
_FORMAT = 1
_THREADS = 8
"""Archives indexed at once: on disks behind a network nearly all the time is waiting."""
_WAIT_SECONDS = 7200.0

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
    elsewhere = _elsewhere(folder)

    def known() -> Indexes:
        return {
            name: index
            for place in (elsewhere, folder)
            for name, index in _load(place / INDEX).items()
            if name not in stamps or index.stamp == stamps[name]
        }

    kept = known()
    if stamps.keys() <= kept.keys():
        return {name: kept[name] for name in names}
    place = folder if os.access(folder, os.W_OK) else elsewhere
    with ExitStack() as stack:
        writable = True
        try:
            stack.enter_context(locked(place, say, _WAIT_SECONDS))
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


def _elsewhere(folder: Path) -> Path:
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

    def write(file: BinaryIO) -> None:
        np.savez_compressed(file, **arrays)

    try:
        write_whole(place / INDEX, write)
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

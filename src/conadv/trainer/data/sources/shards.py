"""WebDataset shards: tar archives with an image and a label per key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, say_to_stderr
from conadv.trainer.data.sources.handles import ArchiveSource
from conadv.trainer.data.sources.manifest import check_complete, read_manifest
from conadv.trainer.data.sources.source import (
    EXTENSIONS,
    Names,
    check_labels,
    fingerprint_of,
    pack_names,
    unpack_name,
)
from conadv.trainer.data.sources.tar import TarIndex, tar_indexes


class ShardSource(ArchiveSource):
    """Shards on a local disk, all in one folder.

    A shard holds pairs ``key.jpg`` (or png, webp, ...) and ``key.cls``, the label as a number.
    Members with other endings are left alone. The names of the classes are taken from the
    ``manifest.json`` beside the shards, if `write_shards` made them; otherwise they are the
    numbers up to the largest label.

    The first time, the headers of the shards are read to find the images; the result is kept
    beside them, or else in `conadv.trainer.data.cache_dir`.

    Args:
        shards: the archives, in order.
        name: what the source is called; None: the folder's name.
        say: told a line of text at every stage of something slow.

    Raises:
        DataError: a shard is missing, damaged or cut off, an image has no label, the manifest
            promises something else, or the shards are in several folders.
    """

    def __init__(
        self, shards: Sequence[Path | str], name: str | None = None, say: Say = say_to_stderr
    ) -> None:
        paths = [Path(shard).expanduser() for shard in shards]
        folders = {path.parent for path in paths}
        if len(folders) != 1:
            raise DataError(
                f"These {len(paths)} shards are in {len(folders)} folders: give shards of one."
            )
        [folder] = folders
        manifest = read_manifest(folder)
        if manifest is not None and not {path.name for path in paths} & set(manifest.shards()):
            manifest = None  # it speaks of other shards
        indexes = tar_indexes(folder, [path.name for path in paths], say)
        found = [_images(path, indexes[path.name]) for path in paths]
        numbers = [label for _, labels in found for label in labels]
        name = name or folder.resolve().name
        if manifest is not None:
            check_complete(manifest, folder, [path.name for path in paths], len(numbers))
            classes = manifest.classes
        else:
            classes = tuple(str(label) for label in range(max(numbers, default=-1) + 1))
        labels = check_labels(name, numbers, classes)
        parts = [
            _Part(path, indexes[path.name], positions)
            for path, (positions, _) in zip(paths, found, strict=True)
        ]
        sizes = np.concatenate([part.members.sizes[part.positions] for part in parts])
        # Keys are unique within a shard only.
        full = np.concatenate([np.char.add(part.prefix(), part.names()) for part in parts])
        super().__init__(
            name,
            classes,
            labels,
            fingerprint_of(full, sizes, labels),
            paths=paths,
            stamps=[part.members.stamp for part in parts],
            archive=np.repeat(
                np.arange(len(parts), dtype=np.int32), [len(part.positions) for part in parts]
            ),
            names=np.concatenate([part.names() for part in parts]),
            offsets=np.concatenate([part.members.offsets[part.positions] for part in parts]),
            sizes=sizes,
        )


class _Part(NamedTuple):
    """The images of one shard. Arrays, because a million images as objects take much memory."""

    path: Path
    members: TarIndex
    positions: npt.NDArray[np.int64]
    """Of the images among the members."""

    def names(self) -> Names:
        return self.members.names[self.positions]

    def prefix(self) -> Names:
        return pack_names([f"{self.path.name}/"])


def _images(path: Path, index: TarIndex) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Positions of a shard's images among its members, in its order, and their labels."""
    labels: dict[str, int] = {}
    images: dict[str, int] = {}
    texts = index.texts.tolist()
    names = [unpack_name(packed) for packed in index.names.tolist()]
    for position, name in enumerate(names):
        key, extension = _key(name)
        if extension == "cls":
            labels[key] = _label(path, name, texts[position])
        elif extension in EXTENSIONS:
            if key in images:
                raise DataError(
                    f"{path} holds two images for the key {key}: {names[images[key]]} and {name}. "
                    "Give each image a key of its own: what is before the first dot of its name."
                )
            images[key] = position
    if not images:
        raise DataError(
            f"{path} holds no images: a shard holds pairs such as 000000.jpg and 000000.cls."
        )
    for key, position in images.items():
        if key not in labels:
            raise DataError(
                f"{path}::{names[position]} has no label: put {key}.cls, a number as text, "
                "beside it."
            )
    return np.array(list(images.values()), dtype=np.int64), [labels[key] for key in images]


def _key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the extension begins at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _label(path: Path, name: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{path}::{name} holds {text[:20]!r}: a label is a number from 0, as text."
        ) from None

"""WebDataset shards: tar archives with an image and a label per key."""

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
    LeftOut,
    Names,
    check_classes_used,
    check_labels,
    extension_of,
    fingerprint_of,
    pack_names,
    unpack_name,
)
from conadv.trainer.data.sources.tar import TarIndex, tar_indexes


class ShardSource(ArchiveSource):
    """Shards on a local disk, all in one folder.

    A shard holds pairs ``key.jpg`` (or png, webp, ...) and ``key.cls``, the label as a number; a
    key may have dots. Members with other endings, and further images of a key
    (``key.mask.png``), are left out, counted and told. The names of the classes are taken from the
    ``manifest.json`` beside the shards, if `write_shards` made them; otherwise they are the
    labels themselves, which run from 0 without a gap.

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
        left_out = LeftOut()
        found = [_images(path, indexes[path.name], left_out) for path in paths]
        left_out.tell(folder, say)
        numbers = [label for _, labels in found for label in labels]
        name = name or folder.resolve().name
        if manifest is not None:
            check_complete(manifest, folder, [path.name for path in paths], len(numbers))
            classes = manifest.classes
        else:
            classes = tuple(str(label) for label in range(check_classes_used(name, numbers)))
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
    """Positions of the images among the members."""

    def names(self) -> Names:
        return self.members.names[self.positions]

    def prefix(self) -> Names:
        return pack_names([f"{self.path.name}/"])


def _images(
    path: Path, index: TarIndex, left_out: LeftOut
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Positions of a shard's images among its members, in its order, and their labels."""
    labels: dict[str, int] = {}
    images: dict[str, int] = {}
    """Positions by key, which is all before the last dot of a name."""
    texts = index.texts.tolist()
    names = [unpack_name(packed) for packed in index.names.tolist()]
    for position, name in enumerate(names):
        extension = extension_of(name.rpartition("/")[2])
        key = name[: len(name) - len(extension) - 1]
        if name.rpartition("/")[2].startswith("."):
            continue
        if extension == "cls":
            labels[key] = _label(path, name, texts[position])
        elif extension in EXTENSIONS:
            if key in images:
                raise DataError(
                    f"{path} holds two images for the key {key}: {names[images[key]]} and {name}. "
                    "Give each image a key of its own: what is before the last dot of its name."
                )
            images[key] = position
        else:
            left_out.add(name.rpartition("/")[2])
    for key in [key for key in images if key not in labels and _first_part(key) != key]:
        left_out.add(names[images.pop(key)].rpartition("/")[2].partition(".")[2])
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


def _first_part(key: str) -> str:
    """The key by WebDataset's own rule, where it ends at the first dot: the rest is a column."""
    folder, slash, file = key.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(path: Path, name: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{path}::{name} holds {text[:20]!r}: a label is a number from 0, as text."
        ) from None

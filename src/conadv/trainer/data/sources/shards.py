"""WebDataset shards: tar archives with an image and a label per key."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, say_to_stderr
from conadv.trainer.data.sources.archive import ArchiveSource, ImageTable, kept_table
from conadv.trainer.data.sources.handles import stamp_of
from conadv.trainer.data.sources.manifest import Manifest, check_complete, read_manifest
from conadv.trainer.data.sources.source import (
    EXTENSIONS,
    LeftOut,
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
    beside them, or else in `conadv.trainer.data.cache_dir`, and mapped into memory: a process
    holds nothing of its own for each image.

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
        called = name or folder.resolve().name
        stamps = [stamp_of(path) for path in paths]
        key = [path.name for path in paths], stamps, manifest
        table = kept_table(folder, key, lambda: _table(called, paths, manifest, say), say)
        LeftOut(table.left_out).tell(folder, say)
        super().__init__(called, table, paths, stamps)


def _table(name: str, paths: list[Path], manifest: Manifest | None, say: Say) -> ImageTable:
    """What the shards hold, from their index."""
    folder, files = paths[0].parent, [path.name for path in paths]
    indexes = tar_indexes(folder, files, say)
    left_out = LeftOut()
    found = [_images(path, indexes[path.name], left_out) for path in paths]
    labels = np.concatenate([labels for _, labels in found])
    if manifest is not None:
        check_complete(manifest, folder, files, len(labels))
        classes = manifest.classes
    else:
        classes = tuple(str(label) for label in range(check_classes_used(name, labels)))
    check_labels(name, labels, classes)
    chosen = [(indexes[file], at) for file, (at, _) in zip(files, found, strict=True)]
    sizes = np.concatenate([index.sizes[at] for index, at in chosen])
    names = [index.names[at] for index, at in chosen]
    # Keys are unique within a shard only.
    full = (
        np.char.add(pack_names([f"{file}/"]), part) for file, part in zip(files, names, strict=True)
    )
    return ImageTable(
        classes,
        tuple(len(at) for _, at in chosen),
        left_out.counts,
        fingerprint_of(full, sizes, labels),
        labels,
        np.concatenate(names),
        np.concatenate([index.offsets[at] for index, at in chosen]),
        sizes,
    )


def _images(
    path: Path, index: TarIndex, left_out: LeftOut
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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
    positions = np.array(list(images.values()), dtype=np.int64)
    return positions, np.array([labels[key] for key in images], dtype=np.int64)


def _first_part(key: str) -> str:
    """The key by WebDataset's own rule, where it ends at the first dot: the rest is a column."""
    folder, slash, file = key.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(path: Path, name: str, text: bytes) -> int:
    try:
        return int(np.int64(int(text)))
    except (ValueError, OverflowError):
        raise DataError(
            f"{path}::{name} holds {text[:20]!r}: a label is a number from 0, as text."
        ) from None

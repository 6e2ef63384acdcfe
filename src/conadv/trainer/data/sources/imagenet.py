"""ImageNet (ILSVRC 2012) in the archives in which it is published, read without unpacking."""

import importlib
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, say_to_stderr
from conadv.trainer.data.sources.archive import ArchiveSource, ImageTable, kept_table
from conadv.trainer.data.sources.handles import stamp_of, unreadable
from conadv.trainer.data.sources.source import (
    Names,
    check_labels,
    fingerprint_of,
    is_image,
    pack_names,
    unpack_name,
)
from conadv.trainer.data.sources.tar import tar_indexes

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"


class ImageNetSource(ArchiveSource):
    """The training or the validation images of ImageNet.

    Training needs ``ILSVRC2012_img_train.tar``, an archive of 1,000 archives. Validation needs
    ``ILSVRC2012_img_val.tar`` and, for the labels, ``ILSVRC2012_devkit_t12.tar.gz``. Classes are
    the WordNet numbers, such as n01440764, sorted: the order of everybody's pretrained models.
    Images are sorted by class and name, so the order and the fingerprint are those of a
    `FolderSource` of the unpacked images.

    The first time, the headers of the archives are read to find the images, which takes minutes;
    the result is kept beside the archives, or else in `conadv.trainer.data.cache_dir`.

    Args:
        folder: holds the archives.
        split: ``"train"`` or ``"val"``.
        say: told a line of text at every stage of something slow.

    Raises:
        DataError: an archive is missing, damaged or not the published one, or scipy is missing,
            which reads the table of classes.
        ValueError: another split.
    """

    def __init__(self, folder: Path | str, split: str, say: Say = say_to_stderr) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"ImageNet has the splits train and val, not {split!r}.")
        folder = Path(folder).expanduser()
        path = folder / (TRAIN if split == "train" else VAL)
        _require(path)
        if split == "val":
            _require(folder / DEVKIT)
        needed = [path] if split == "train" else [path, folder / DEVKIT]
        stamps = [stamp_of(file) for file in needed]
        table = kept_table(folder, (split, stamps), lambda: _table(path, split, say), say)
        super().__init__(f"imagenet-{split}", table, [path], stamps[:1])


def _table(path: Path, split: str, say: Say) -> ImageTable:
    """What the archive holds, from its index."""
    index = tar_indexes(path.parent, [path.name], say)[path.name]
    members = [unpack_name(name) for name in index.names.tolist()]
    images = [i for i, name in enumerate(members) if is_image(_file(name))]
    if split == "train":
        names = [members[i] for i in images]
        folders = _training_classes(path, names)
        classes = sorted(set(folders))
    else:
        # The numbers in the names have leading zeros, so their order is that of the labels.
        images.sort(key=lambda i: _file(members[i]))
        folders, classes = _validation_classes(path.parent, len(images))
        names = [f"{c}/{_file(members[i])}" for c, i in zip(folders, images, strict=True)]
    label_of = {c: label for label, c in enumerate(classes)}
    labels = np.array([label_of[c] for c in folders], dtype=np.int64)
    check_labels(str(path), labels, classes)
    packed: Names = pack_names(names)
    # By class and name: what a folder of the unpacked images would give.
    order = np.argsort(packed, kind="stable")
    chosen = np.array(images, dtype=np.int64)[order]
    labels, sizes = labels[order], index.sizes[chosen]
    return ImageTable(
        tuple(classes),
        (len(chosen),),
        {},
        fingerprint_of([packed[order]], sizes, labels),
        labels,
        index.names[chosen],
        index.offsets[chosen],
        sizes,
    )


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"{path} is missing: fetch it from https://image-net.org (after registration), put it "
            "into the folder as it is, and do not unpack it."
        )


def _training_classes(path: Path, names: Sequence[str]) -> list[str]:
    """The class of each image: the archive that it lies in."""
    for name in names:
        if name.count("/") != 1:
            raise DataError(
                f"{path} holds {name}, but the published archive holds one archive per class, "
                "such as n01440764.tar, with images in it. Give the published one; for images in "
                "folders, unpack them and give the folder."
            )
    return [name.partition("/")[0] for name in names]


def _validation_classes(folder: Path, images: int) -> tuple[list[str], list[str]]:
    """The class of each image, in order of their numbers, and all classes."""
    truth, classes = read_devkit(folder / DEVKIT)
    if len(truth) != images:
        raise DataError(
            f"{folder / VAL} holds {images:,} images, but {DEVKIT} has labels for {len(truth):,}: "
            "give both as they are published."
        )
    return truth, classes


DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TABLE = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """The WordNet number of each validation image, and those of all classes, sorted.

    The kit numbers classes in an order of its own, which is not the sorted one; the table that
    translates is a file of MATLAB.

    Args:
        path: ``ILSVRC2012_devkit_t12.tar.gz``, as published.

    Raises:
        DataError: the kit cannot be read, or lacks something, or scipy is not installed.
    """
    try:
        with tarfile.open(path) as tar:
            table, truth = _content(path, tar, _TABLE), _content(path, tar, _TRUTH)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:  # gzip reports damage so, without an error number
        if error.errno is None:
            raise _damaged(path, str(error)) from error
        raise unreadable(path, error) from error
    numbers = _wnids(path, table)
    try:
        labels = [numbers[int(word)] for word in truth.split()]
    except (ValueError, KeyError) as error:
        raise _damaged(path, f"{_TRUTH} names class {error}") from error
    return labels, sorted(numbers.values())


def _content(path: Path, tar: tarfile.TarFile, name: str) -> bytes:
    for member in tar:
        if member.isreg() and member.name.endswith(name):
            file = tar.extractfile(member)
            assert file is not None  # it is a plain file
            return file.read()
    raise _damaged(path, f"there is no {name} in it")


def _wnids(path: Path, table: bytes) -> dict[int, str]:
    """ILSVRC2012_ID to WordNet number, of the classes that have images."""
    try:
        matlab: Any = importlib.import_module("scipy.io")
    except ImportError as error:
        raise DataError(
            f"scipy is not installed, and {path} needs it: the table of classes in it is a MATLAB "
            "file. Type: pip install scipy"
        ) from error
    try:
        rows = matlab.loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        # Classes with children group others and have no images.
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in rows
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # whatever scipy meets in a damaged file
        raise _damaged(path, f"{_TABLE}: {error}") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged or not the published one ({why}): fetch it again from "
        "https://image-net.org."
    )

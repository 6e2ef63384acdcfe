"""What every source of encoded images offers, and what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conadv.errors import DataError

Names = npt.NDArray[np.bytes_]
"""Names as bytes of one width: a million of them in one block of memory, which processes that
were forked share, and which pickles quickly."""

EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"}
)
"""File name extensions of images, in lower case; other files are left alone."""


class ImageSource(Protocol):
    """Encoded images with labels, read one by one in any order.

    A source can be pickled and used in forked and spawned processes and from several threads:
    files are opened on first use, once per process.
    """

    @property
    def name(self) -> str:
        """What it is called in messages and result files."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        ...

    @property
    def labels(self) -> Tensor:
        """Labels of the images, int64, shape (N,), on the CPU."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes in bytes and labels of all images; no pixel is read."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> bytes:
        """One image as it is stored, that is JPEG, PNG, ...

        Raises:
            DataError: it cannot be read; names the file.
            IndexError: no such image.
        """
        ...

    def where(self, index: int) -> str:
        """Where an image lies, for messages: a path, or archive::member."""
        ...


def is_image(name: str) -> bool:
    """Whether a file name is that of an image. Hidden files are none: some systems leave them."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem and dot) and not name.startswith(".") and extension.lower() in EXTENSIONS


def pack_names(names: Sequence[str]) -> Names:
    """Names as one array; names that are not UTF-8 survive."""
    if not names:
        return np.zeros(0, dtype="S1")
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype=np.bytes_)


def unpack_name(name: bytes) -> str:
    """The reverse of `pack_names`, for one name."""
    return name.decode("utf-8", "surrogateescape")


def fingerprint_of(names: Names, sizes: npt.NDArray[np.int64], labels: Tensor) -> str:
    """SHA-256 over names, sizes in bytes and labels, in hexadecimal.

    The same on every platform: numbers are taken as little-endian 64-bit integers.
    """
    digest = hashlib.sha256(b"conadv image source 1\0")
    digest.update(b"\0".join(names.tolist()))
    for numbers in (sizes, labels.numpy()):
        digest.update(b"\0")
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def check_labels(name: str, labels: Sequence[int], classes: Sequence[str]) -> Tensor:
    """Labels as a tensor.

    Raises:
        DataError: there are none, or one is no index into `classes`.
    """
    found = torch.tensor(labels, dtype=torch.int64)
    if len(found) == 0:
        raise DataError(f"{name}: there are no images in it.")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= len(classes):
        wrong = low if low < 0 else high
        raise DataError(
            f"{name}: a label is {wrong}, but with {len(classes)} classes labels run from 0 to "
            f"{len(classes) - 1}."
        )
    return found

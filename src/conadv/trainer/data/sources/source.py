"""What every source of encoded images offers, and what they share."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conadv.errors import DataError

Names = npt.NDArray[np.bytes_]
"""Names as bytes of one width: a million of them in one block of memory, which processes that
were forked share, and which pickles quickly."""

_JPEG = {"jpg", "jpeg", "jpe", "jfif", "jp2", "j2k", "jpx"}
_OTHERS = {"png", "apng", "webp", "avif", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
EXTENSIONS = frozenset(_JPEG | _OTHERS | {"tga"})
"""File name extensions of images, in lower case: what `decoding.decode` reads."""
_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n", "png"),
    (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (8, b"WEBP", "webp"),
    (4, b"ftypavif", "avif"),
    (4, b"jP  \r\n", "jp2"),
)
"""Where images begin, with which bytes, and the extension of such files."""
_LISTED = 6
PART = 2**12
"""Images that are looked at at a time, where there may be any number."""


class ImageSource(Protocol):
    """Encoded images with labels, read one by one in any order.

    A source can be pickled and used in forked and spawned processes and from several threads:
    files are opened on first use, once per process.
    """

    @property
    def name(self) -> str:
        """What it is called in messages and result files."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""

    @property
    def labels(self) -> Tensor:
        """Labels of the images, int64, shape (N,), on the CPU."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes in bytes and labels of all images; no pixel is read."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes:
        """One image as it is stored, that is JPEG, PNG, ...

        Raises:
            DataError: it cannot be read; names the file.
            IndexError: no such image.
        """

    def where(self, index: int) -> str:
        """Where an image lies, for messages: a path, or archive::member."""


def is_image(name: str) -> bool:
    """Whether a file name is that of an image. Hidden files are none: some systems leave them."""
    return not name.startswith(".") and extension_of(name) in EXTENSIONS


def extension_of(name: str) -> str:
    """The extension of a file name in lower case, without the dot; empty if it has none."""
    stem, _, extension = name.rpartition(".")
    return extension.lower() if stem else ""


def kind_of(start: bytes) -> str | None:
    """The extension of an image by its first bytes, of which 16 are enough; None: no image."""
    return next((kind for at, magic, kind in _MAGIC if start[at:].startswith(magic)), None)


class LabelledSource:
    """What sources share that hold a label for each image."""

    name: str
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"


class LeftOut:
    """Counts the files of a source that are taken for no images, by reason.

    Args:
        counts: of an earlier look.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts or {})

    def add(self, name: str) -> None:
        """Count a file that is left out because of its name."""
        extension = extension_of(name)
        none = "no extension and not the beginning of an image"
        self.counts[f".{extension}" if extension else none] += 1

    def tell(self, where: object, say: Callable[[str], None]) -> None:
        """Say what was left out, if anything was."""
        if not self.counts:
            return
        reasons = [f"{count:,} {reason}" for reason, count in self.counts.most_common(_LISTED)]
        if (others := len(self.counts) - _LISTED) > 0:
            reasons.append(f"{others} other kinds")
        total = self.counts.total()
        say(f"{where}: {total:,} file{'s' * (total > 1)} left out ({'; '.join(reasons)})")


def check_classes_used(name: str, labels: npt.NDArray[np.int64]) -> int:
    """The number of classes that labels speak of, which run from 0 without a gap.

    Args:
        name: What the source is called.
        labels: Of the images.

    Raises:
        DataError: A class has no images; labels alone never decide the size of a network.
    """
    used = np.unique(labels)
    count = int(used[-1]) + 1 if len(used) else 0
    if len(used) < count and used[0] >= 0:
        missing = int(np.argmax(used != np.arange(len(used))))
        raise DataError(
            f"{name}: labels go up to {used[-1]:,}, but there are images of {len(used):,} classes "
            f"only; class {missing:,} is the first without one. Number the classes from 0 without "
            "a gap."
        )
    return count


def pack_names(names: Sequence[str]) -> Names:
    """Names as one array; names that are not UTF-8 survive."""
    if not names:
        return np.zeros(0, dtype="S1")
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype=np.bytes_)


def unpack_name(name: bytes) -> str:
    """The reverse of `pack_names`, for one name."""
    return name.decode("utf-8", "surrogateescape")


def fingerprint_of(
    names: Iterable[Names], sizes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> str:
    """SHA-256 over names, sizes in bytes and labels, in hexadecimal.

    The same on every platform: numbers are taken as little-endian 64-bit integers.

    Args:
        names: in parts, none of them empty; how they are cut changes nothing.
        sizes: of the images, shape (N,).
        labels: likewise.
    """
    digest = hashlib.sha256(b"conadv image source 1")
    for part in names:
        for first in range(0, len(part), PART):
            digest.update(b"\0" + b"\0".join(part[first : first + PART].tolist()))
    for numbers in (sizes, labels):
        digest.update(b"\0")
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").data)
    return digest.hexdigest()


def check_labels(name: str, labels: npt.NDArray[np.int64], classes: Sequence[str]) -> Tensor:
    """Labels as a tensor.

    Raises:
        DataError: there are none, or one is no index into `classes`.
    """
    found = torch.from_numpy(labels)
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

"""Clean images, perturbations and adversarial copies as inlined PNGs."""

import base64
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """A few images three times over.

    Attributes:
        clean: uint8, shape (N, H, W, C) with one or three channels.
        perturbation: float32 in grey levels (of 255), same shape, signed.
        adversarial: uint8, same shape.
        labels: What each image shows, as text; empty strings where unknown.
    """

    clean: Pixels
    perturbation: npt.NDArray[np.float32]
    adversarial: Pixels
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Triple:
    """One image for the page: three data URLs and what it shows."""

    label: str
    clean: str
    perturbation: str
    adversarial: str


def read_pictures(path: Path) -> Pictures:
    """Read ``pictures.npz``; never unpickles.

    A perturbation of integers is in grey levels, one of floats in units of the [0, 1] pixel range.
    If it is missing it is taken as the difference of the two image sets.

    Raises:
        ValueError: The file is damaged, or its arrays do not fit together.
    """
    try:
        # Opened here: numpy leaves a file open whose archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError("it is damaged or holds pickled objects") from error
    if "clean" not in arrays or "adversarial" not in arrays:
        raise ValueError("it lacks the arrays clean and adversarial")
    clean, adversarial = _images(arrays["clean"]), _images(arrays["adversarial"])
    if clean.shape != adversarial.shape or not len(clean):
        raise ValueError("clean and adversarial images differ in shape or are empty")
    return Pictures(
        clean,
        _grey_levels(arrays.get("perturbation"), clean, adversarial),
        adversarial,
        _labels(arrays.get("labels"), arrays.get("classes"), len(clean)),
    )


def strongest(pictures: Pictures) -> float:
    """The largest change of one pixel, in grey levels (of 255)."""
    return float(np.abs(pictures.perturbation).max())


def triples(pictures: Pictures, most: int = 8) -> list[Triple]:
    """The first images as data URLs.

    The perturbation is shown around mid-grey, scaled so that its strongest change is full black or
    full white.
    """
    scale = 127.0 / max(strongest(pictures), 1e-12)
    shown = np.clip(np.rint(128 + scale * pictures.perturbation), 0, 255).astype(np.uint8)
    return [
        Triple(
            pictures.labels[i],
            data_url(pictures.clean[i]),
            data_url(shown[i]),
            data_url(pictures.adversarial[i]),
        )
        for i in range(min(most, len(pictures.clean)))
    ]


def data_url(image: Pixels) -> str:
    """A PNG of one image (H, W, C), C = 1 or 3, as a ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")


def encode_png(image: Pixels) -> bytes:
    """Write an 8-bit grey or RGB PNG (RFC 2083): 28 pixels a side need no imaging library."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    # Filter type 0 (none) in front of every row.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _images(array: npt.NDArray[np.generic]) -> Pixels:
    if array.dtype != np.uint8:
        raise ValueError(f"images are {array.dtype}, not uint8")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"images have the shape {array.shape}, not (N, H, W, 1 or 3)")
    return array.astype(np.uint8)


def _grey_levels(
    given: npt.NDArray[np.generic] | None, clean: Pixels, adversarial: Pixels
) -> npt.NDArray[np.float32]:
    if given is not None and given.dtype.kind in "fi" and given.size == clean.size:
        unit = 255 if given.dtype.kind == "f" else 1
        levels = given.reshape(clean.shape).astype(np.float32) * unit
        if np.isfinite(levels).all():
            return levels
    return adversarial.astype(np.float32) - clean.astype(np.float32)


def _labels(
    labels: npt.NDArray[np.generic] | None, classes: npt.NDArray[np.generic] | None, n: int
) -> tuple[str, ...]:
    if labels is None or labels.shape != (n,):
        return ("",) * n
    if labels.dtype.kind in "iu" and classes is not None and classes.dtype.kind == "U":
        names = [str(name) for name in classes]
        return tuple(names[i] if 0 <= i < len(names) else f"class {i}" for i in labels.tolist())
    if labels.dtype.kind in "iu":
        return tuple(f"class {i}" for i in labels.tolist())
    return tuple(map(str, labels.tolist())) if labels.dtype.kind == "U" else ("",) * n

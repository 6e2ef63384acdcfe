"""Encoded image -> uint8 RGB of the size that the network takes.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the part that is taken still has enough
pixels: libjpeg leaves the high frequencies out, which is quick, needs little memory and is close
to what the resize would do. The resize is torch's for uint8, with antialiasing: it agrees with
Pillow's within two grey levels and takes a quarter of the time.

Measured on one core with photographs of 512 x 512 pixels, of some 2.6 ms for a decode 2.1 are the
reading of the Huffman code, which every decoder has to do. simplejpeg is 0.2 ms quicker than
Pillow, torchvision.io.decode_jpeg slower: neither is worth a dependency.

EXIF orientation is ignored unless asked for. That is the practice on ImageNet (torchvision's and
timm's loaders ignore it, too), so figures stay comparable. Alpha is dropped and a palette looked
up, as ``Image.convert("RGB")`` does; 16-bit grey keeps its upper byte. Pixels of 32 bits have no
range that a file tells: such images count as damaged, and so do those of more pixels than fit
into memory. Only formats of pixels are opened: PostScript would start another program.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from conadv.errors import DataError

Interpolation = Literal["bilinear", "bicubic"]
_ORIENTATION = 0x0112
# Formats of pixels alone: no program is started for them.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "GIF", "TIFF", "BMP", "PPM", "TGA")
LARGEST_PIXELS = 2**27
"""Pixels that are decoded at most, half a gigabyte; a JPEG is decoded at a smaller scale."""
_LARGEST_RATIO = 20.0
"""Aspect ratio above which evaluation takes the middle first, so that memory is bounded."""


class DecodeError(DataError):
    """Bytes that are no whole image: cut off, damaged, or of an unknown format."""


def decode_crop(
    data: bytes,
    choose: Callable[[int, int], Box],
    size: int,
    interpolation: Interpolation = "bilinear",
    *,
    exif: bool = False,
) -> Tensor:
    """A part of an image, resized.

    The part is rounded to whole pixels of the scale at which the image is decoded, that is by at
    most four pixels of the original.

    Args:
        data: the file, of any format that Pillow reads.
        choose: gets height and width of the image and says which part to take.
        size: height and width of the result.
        interpolation: with antialiasing.
        exif: turn the image as its EXIF orientation says.

    Returns:
        uint8, shape (size, size, 3).

    Raises:
        DecodeError: the bytes are no whole image; says why.
    """
    with _reasons():
        image = _open(data)
        shape = _height_width(image, exif)
        box = choose(*shape)
        if not exif:
            least = first_rows(data, box.top + box.height)
            image = image if least is data else _open(least)
        image, scale = _load(image, min(box.height, box.width) // size, exif)
        return _resize(_pixels(image, _scaled(box, scale, image)), size, size, interpolation)


def decode_centre(
    data: bytes,
    size: int,
    resize: int,
    interpolation: Interpolation = "bilinear",
    *,
    exif: bool = False,
) -> Tensor:
    """The middle of an image, as models are evaluated: resize the shorter side, crop the centre.

    Only images twice as large as needed, or more, are decoded at a smaller scale, so that the
    result is that of torchvision's Resize and CenterCrop within a few grey levels. Of images 20
    times as long as wide, or more, the middle is taken first.

    Args:
        data: the file, of any format that Pillow reads.
        size: height and width of the result.
        resize: what the shorter side becomes; `size` at least.
        interpolation: with antialiasing.
        exif: turn the image as its EXIF orientation says.

    Returns:
        uint8, shape (size, size, 3).

    Raises:
        DecodeError: the bytes are no whole image; says why.
        ValueError: `resize` below `size`.
    """
    if resize < size:
        raise ValueError(f"resize={resize}, size={size}: give resize >= size.")
    with _reasons():
        image = _open(data)
        shape = _height_width(image, exif)
        box = middle_box(*shape, (1 / _LARGEST_RATIO, _LARGEST_RATIO))
        image, scale = _load(image, min(shape) // (2 * resize), exif)
        tall, wide = resized(box.height, box.width, resize)
        whole = _resize(_pixels(image, _scaled(box, scale, image)), tall, wide, interpolation)
        top, left, _, _ = centre(tall, wide, size)
        return whole[top : top + size, left : left + size].contiguous()


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into a `DecodeError`."""
    try:
        yield
    except MemoryError:
        raise  # of the machine, not of the image
    except Image.DecompressionBombError as error:
        raise DecodeError(f"more pixels than Pillow decodes: {error}") from error
    except Exception as error:  # OSError, SyntaxError, struct.error, ValueError, and more
        # Pillow names the object it could not identify; its address would differ in every run.
        text = str(error).partition(" <_io")[0] or type(error).__name__
        raise DecodeError(text) from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise OSError("the file is empty")
    # Pillow warns of large images and refuses still larger ones; `_load` has a limit of its own,
    # which knows at which scale an image is decoded.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _height_width(image: Image.Image, exif: bool) -> tuple[int, int]:
    """Height and width of the whole image, after it has been turned."""
    wide, tall = image.size
    turned = exif and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (wide, tall) if turned else (tall, wide)


def _load(image: Image.Image, spare: int, exif: bool) -> tuple[Image.Image, int]:
    """Decode, at a scale of 1 / `spare` or larger; returns the divisor, too."""
    divisor, size = 1, image.size
    for factor in (8, 4, 2):
        if factor <= spare:
            image.draft(None, (image.width // factor, image.height // factor))
            # Formats other than JPEG decode at full size only; draft does nothing there.
            divisor = factor if image.size != size else 1
            break
    if image.width * image.height > LARGEST_PIXELS:
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels: at most {LARGEST_PIXELS:,} are decoded"
        )
    if exif:
        return ImageOps.exif_transpose(image), divisor
    image.load()
    return image, divisor


def _scaled(box: Box, divisor: int, image: Image.Image) -> Box:
    """A box of the original image in the one that was decoded; one pixel at least."""
    if divisor == 1:
        return box
    top, bottom = _span(box.top, box.height, divisor, image.height)
    left, right = _span(box.left, box.width, divisor, image.width)
    return Box(top, left, bottom - top, right - left)


def _span(first: int, length: int, divisor: int, end: int) -> tuple[int, int]:
    start = min(round(first / divisor), end - 1)
    return start, min(max(round((first + length) / divisor), start + 1), end)


def _pixels(image: Image.Image, box: Box) -> Tensor:
    """Part of a decoded image as RGB, uint8, shape (height, width, 3)."""
    top, left, tall, wide = box
    if box != (0, 0, image.height, image.width):
        image = image.crop((left, top, left + wide, top + tall))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow would clip at 255, which makes nearly everything white.
        deep = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(deep.clip(0, 255).astype(np.uint8))
    if image.mode in ("F", "I"):
        raise ValueError("pixels of 32 bits, whose range is unknown: convert them to 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB Pillow warns of transparency
    if image.mode != "RGB":
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image))


def _resize(pixels: Tensor, tall: int, wide: int, interpolation: Interpolation) -> Tensor:
    """(H, W, 3) to (tall, wide, 3), uint8, contiguous."""
    if pixels.shape[:2] == (tall, wide):
        return pixels
    # The memory lies channels last, for which torch has vector code.
    batch = pixels[None].permute(0, 3, 1, 2)
    result = interpolate(batch, (tall, wide), mode=interpolation, antialias=True)
    return result[0].permute(1, 2, 0).contiguous()


_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL = (0xC0, 0xC1)
_OTHER_FRAMES = {0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_SCAN = 0xDA
_MARGIN = 16
"""Rows below that still count: colour is interpolated between the rows of a smaller image."""
_WORTHWHILE = 0.95


def first_rows(data: bytes, rows: int) -> bytes:
    """A JPEG of the first rows of a JPEG, or the same bytes where that is no gain or not possible.

    Only for sequential files of one scan. A file that does not end as it should is left alone: the
    decoder has to find out that it is truncated, whichever part of it is wanted.

    Args:
        data: any file.
        rows: that will be looked at; the result has some more.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return data
    place = _height_place(data)
    if place is None:
        return data
    wanted, height = rows + _MARGIN, int.from_bytes(data[place : place + 2], "big")
    # A height of 0 means that it stands behind the image.
    if wanted > _WORTHWHILE * height:
        return data
    return b"".join((data[:place], wanted.to_bytes(2, "big"), data[place + 2 :]))


def _height_place(data: bytes) -> int | None:
    """Where the height stands in a sequential file of one scan; None for others."""
    at, place, components = len(_START), None, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _OTHER_FRAMES or length < 2 or at + length + 2 > len(data):
            return None
        if marker in _SEQUENTIAL and length >= 8:
            # Length, precision, height, width, number of components.
            place, components = at + 5, data[at + 9]
        if marker == _SCAN:
            # Files may hold their components one after the other; the rows of the last would be
            # looked for where those of the first go on.
            return place if data[at + 4] == components else None
        at += 2 + length
    return None


ATTEMPTS = 10
NUMBERS = 2 + 2 * ATTEMPTS
"""Random numbers that `random_box` takes, whatever it needs of them."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: Sequence[float],
) -> Box:
    """A part of random area and shape, by the rule of torchvision's RandomResizedCrop.

    The area is uniform and the logarithm of width / height is; the first of ten that fits is
    taken, and if none does the largest middle part of an allowed shape.

    Args:
        height: of the image.
        width: of the image.
        scale: smallest and largest area, as a share of the image's.
        ratio: smallest and largest width / height.
        numbers: `NUMBERS` random numbers in [0, 1): two for the place, two for each attempt.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        first, second = numbers[2 + 2 * attempt], numbers[3 + 2 * attempt]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * first)
        shape = math.exp(low + (high - low) * second)
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(numbers[0] * (height - tall + 1))
            left = int(numbers[1] * (width - wide + 1))
            return Box(top, left, tall, wide)
    return middle_box(height, width, ratio)


def middle_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest part in the middle whose width / height lies within `ratio`."""
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        wide = min(width, max(1, round(height * ratio[1])))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `shorter`, rounded as torchvision does."""
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


def centre(height: int, width: int, size: int) -> Box:
    """The square of side `size` in the middle, placed as torchvision's CenterCrop does."""
    return Box(round((height - size) / 2.0), round((width - size) / 2.0), size, size)

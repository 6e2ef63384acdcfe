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
up, as ``Image.convert("RGB")`` does; 16-bit grey keeps its upper byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from conadv.data.decoding.crop import Box, centre, middle_box, resized
from conadv.data.decoding.jpeg import first_rows
from conadv.errors import DataError

Interpolation = Literal["bilinear", "bicubic"]
_ORIENTATION = 0x0112
_LARGEST_RATIO = 20.0
"""For evaluation the middle of anything longer is taken first, so that memory is bounded."""


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
    return Image.open(io.BytesIO(data))


def _height_width(image: Image.Image, exif: bool) -> tuple[int, int]:
    """Of the whole image, after it has been turned."""
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

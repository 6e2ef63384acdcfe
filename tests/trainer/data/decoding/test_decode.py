"""Bytes to pixels: agreement with torchvision, every kind of file, damage."""

import io
import resource
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from conadv.errors import DataError
from conadv.trainer.data.decoding import DecodeError, decode, decode_centre, decode_crop
from conadv.trainer.data.decoding.decode import Box


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def difference(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max())


def as_loaded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# -- against torchvision and Pillow ----------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [Box(7, 20, 60, 83), Box(0, 0, 130, 170), Box(5, 5, 20, 30)])
def test_a_crop_is_that_of_pillow(picture, encode, box, interpolation) -> None:
    data = encode(Image.fromarray(picture(131, 171)))
    ours = decode_crop(data, lambda h, w: box, 96, interpolation)
    top, left, tall, wide = box
    part = as_loaded(data).crop((left, top, left + wide, top + tall))
    theirs = part.resize((96, 96), Image.Resampling[interpolation.upper()])
    assert ours.shape == (96, 96, 3) and ours.dtype == torch.uint8 and ours.is_contiguous()
    assert difference(ours, theirs) <= 2


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 11])
def test_a_large_crop_is_decoded_at_a_smaller_scale(picture, encode, factor, monkeypatch) -> None:
    side = 48
    data = encode(Image.fromarray(picture(side * factor + 21, side * factor + 9)))
    sizes = []
    load = Image.Image.crop

    def spy(self, *arguments):
        sizes.append(self.size)
        return load(self, *arguments)

    monkeypatch.setattr(Image.Image, "crop", spy)
    box = Box(16, 8, side * factor, side * factor)  # on the grid of every scale
    ours = decode_crop(data, lambda h, w: box, side)
    scale = max(s for s in (1, 2, 4, 8) if s <= factor)
    assert sizes == [(-(-(side * factor + 9) // scale), -(-(side * factor + 21) // scale))]
    monkeypatch.undo()
    part = as_loaded(data).crop((8, 16, 8 + side * factor, 16 + side * factor))
    assert difference(ours, part.resize((side, side), Image.Resampling.BILINEAR)) <= 5
    # Off the grid the place is rounded: half of a coarse pixel at most.
    near = decode_crop(data, lambda h, w: Box(16 - scale // 2, 8, box.height, box.width), side)
    assert difference(ours, near) <= 20


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256), (60, 900), (100, 80)])
def test_evaluation_is_torchvisions(picture, encode, shape) -> None:
    data = encode(Image.fromarray(picture(*shape)))
    theirs = v2.Compose([v2.Resize(128), v2.CenterCrop(112)])(as_loaded(data))
    assert difference(decode_centre(data, 112, 128), theirs) <= 2


def test_evaluation_of_a_large_image_is_nearly_torchvisions(picture, encode) -> None:
    data = encode(Image.fromarray(picture(900, 1201)))
    theirs = v2.Compose([v2.Resize(80), v2.CenterCrop(64)])(as_loaded(data))
    assert difference(decode_centre(data, 64, 80), theirs) <= 6


def test_evaluation_needs_no_padding() -> None:
    with pytest.raises(ValueError, match=r"resize=200, size=224: give resize >= size"):
        decode_centre(b"", 224, 200)


# -- kinds of files --------------------------------------------------------------------------------


def made(picture, mode: str) -> Image.Image:
    image = Image.fromarray(picture(70, 90))
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray((np.arange(70 * 90).reshape(70, 90) % 256).astype(np.uint8))
        image = image.convert(mode[:-1])
        image.putalpha(alpha)
        return image
    return image.quantize(64) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *((mode, "JPEG") for mode in ("L", "CMYK", "RGB")),
        *((mode, "PNG") for mode in ("L", "LA", "RGB", "RGBA", "P", "1")),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("P", "GIF"),
        ("RGB", "TIFF"),
    ],
)
def test_modes_become_rgb_as_torchvision_makes_them(picture, encode, mode, form) -> None:
    data = encode(made(picture, mode), form)
    ours = decode_crop(data, whole, 48)
    theirs = as_loaded(data).resize((48, 48), Image.Resampling.BILINEAR)
    assert difference(ours, theirs) <= 2
    assert decode_centre(data, 32, 40).shape == (32, 32, 3)


def test_transparent_palettes_do_not_warn(picture, encode) -> None:
    # Pillow warns when it converts them straight to RGB, and warnings are errors here.
    data = encode(made(picture, "P"), "PNG", transparency=bytes(range(64)))
    theirs = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB")
    theirs = theirs.resize((48, 48), Image.Resampling.BILINEAR)
    assert difference(decode_crop(data, whole, 48), theirs) <= 2


def test_16_bit_grey_keeps_its_upper_byte(picture, encode) -> None:
    deep = picture(70, 90)[..., 0].astype(np.uint16) * 256 + 17
    data = encode(Image.fromarray(deep), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    ours = decode_crop(data, whole, 48)
    grey = Image.fromarray((deep // 256).astype(np.uint8)).convert("RGB")
    assert difference(ours, grey.resize((48, 48), Image.Resampling.BILINEAR)) <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_unless_asked_for(picture, encode, orientation) -> None:
    image = Image.fromarray(picture(128, 200))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, exif=exif)
    shapes = []

    def remember(height: int, width: int) -> Box:
        shapes.append((height, width))
        return Box(8, 16, 64, 96)

    plain = decode_crop(data, remember, 32)
    assert plain.equal(decode_crop(encode(image), remember, 32))
    turned = decode_crop(data, remember, 32, exif=True)
    straight = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert shapes == [(128, 200), (128, 200), (straight.height, straight.width)]
    part = straight.crop((16, 8, 112, 72)).resize((32, 32), Image.Resampling.BILINEAR)
    # 64 pixels for 32: decoded at one half, so only nearly the same.
    assert difference(turned, part) <= 8
    middle = v2.Compose([v2.Resize(90), v2.CenterCrop(80)])(straight)
    assert difference(decode_centre(data, 80, 90, exif=True), middle) <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (1, 5000)])
def test_tiny_and_narrow_images(picture, encode, shape) -> None:
    data = encode(Image.fromarray(picture(*shape)))
    assert decode_crop(data, whole, 32).shape == (32, 32, 3)
    assert decode_centre(data, 32, 40).shape == (32, 32, 3)
    if shape == (1, 1):
        assert (decode_crop(data, whole, 8) == decode_crop(data, whole, 8)[0, 0]).all()


def test_20_megapixels_take_little_memory(encode) -> None:
    data = encode(Image.new("RGB", (5472, 3648), (90, 120, 30)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pixels in (decode_crop(data, whole, 224), decode_centre(data, 224, 256)):
        assert difference(pixels[0, 0], (90, 120, 30)) <= 2
    # Decoded at full size it would be 80 MB, and as much again for a copy.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


# -- damage ----------------------------------------------------------------------------------------


def broken_png(picture, encode) -> bytes:
    data = bytearray(encode(Image.fromarray(picture(70, 90)), "PNG"))
    data[len(data) // 2] ^= 255
    return bytes(data)


def png_bomb() -> bytes:
    """A header that promises more pixels than anybody should decode."""
    body = b"IHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + body
        + zlib.crc32(body).to_bytes(4, "big")
        + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_file_is_an_error(picture, encode, form, share) -> None:
    data = encode(Image.fromarray(picture(140, 180)), form)
    with pytest.raises(DecodeError) as error:
        decode_crop(data[: int(share * len(data))], whole, 32)
    assert str(error.value) and isinstance(error.value, DataError)
    with pytest.raises(DecodeError):
        decode_centre(data[: int(share * len(data))], 32, 40)


def test_reasons_are_told_and_name_no_address(picture, encode) -> None:
    cases = {
        b"": "the file is empty",
        b"<html>not found</html>": "cannot identify image file",
        encode(Image.fromarray(picture(70, 90)))[:-900]: "truncated",
        png_bomb(): "more pixels than Pillow decodes",
    }
    for data, words in cases.items():
        with pytest.raises(DecodeError, match=words) as error:
            decode_crop(data, whole, 32)
        assert "0x" not in str(error.value)
    with pytest.raises(DecodeError):
        decode_crop(broken_png(picture, encode), whole, 32)


def test_no_damage_raises_anything_else(picture, encode) -> None:
    generator = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        good = encode(Image.fromarray(picture(40, 50)), form)
        for _ in range(60):
            data = bytearray(good)
            for place in generator.integers(0, min(len(data), 600), 4):
                data[place] = generator.integers(256)
            try:
                assert decode_crop(bytes(data), lambda h, w: Box(0, 0, 1, 1), 8).shape == (8, 8, 3)
            except DecodeError:
                continue


def test_want_of_memory_is_not_the_images_fault(picture, encode) -> None:
    def greedy(height: int, width: int) -> Box:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode_crop(encode(Image.fromarray(picture(20, 20))), greedy, 8)


def _file(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_damaged_not_white(mode: str) -> None:
    data = _file(Image.new(mode, (8, 8), 70_000), "TIFF")
    with pytest.raises(DecodeError, match="32 bits, whose range is unknown"):
        decode_centre(data, 8, 8)


def test_postscript_never_starts_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _file(Image.new("RGB", (8, 8)), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"  # Pillow alone would have it drawn
    with pytest.raises(DecodeError, match="cannot identify image file"):
        decode_centre(data, 8, 8)


def test_more_pixels_than_fit_into_memory_are_refused_before_decoding(monkeypatch) -> None:
    data = _file(Image.new("RGB", (8, 8)), "BMP")
    monkeypatch.setattr(decode, "LARGEST_PIXELS", 63)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(DecodeError, match="8 x 8 pixels: at most 63 are decoded"):
        decode_centre(data, 8, 8)

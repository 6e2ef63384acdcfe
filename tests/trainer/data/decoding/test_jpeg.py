"""Leaving out the rows below a crop: same pixels, or the file as it was."""

import io

import numpy as np
import pytest
from PIL import Image

from conadv.trainer.data.decoding import DecodeError, decode_crop
from conadv.trainer.data.decoding.decode import Box, first_rows


def rows_of(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 100, 130])
def test_the_rows_above_are_the_same(picture, encode, subsampling, mode, rows) -> None:
    image = Image.fromarray(picture(160, 203)).convert(mode)
    data = encode(image, subsampling=subsampling, restart_marker_rows=2 if rows == 17 else 0)
    less = first_rows(data, rows)
    got = rows_of(less)
    assert rows <= len(got) == rows + 16
    assert (got[:rows] == rows_of(data)[:rows]).all()


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_also_at_a_smaller_scale(picture, encode, divisor) -> None:
    data = encode(Image.fromarray(picture(320, 403)), subsampling=2)
    small = []
    for file in (data, first_rows(data, 160)):
        image = Image.open(io.BytesIO(file))
        image.draft(None, (image.width // divisor, image.height // divisor))
        small.append(np.array(image))
    assert small[1].shape[0] == 176 // divisor
    assert (small[0][: 160 // divisor] == small[1][: 160 // divisor]).all()


def test_a_crop_is_the_same_with_and_without(picture, encode, monkeypatch) -> None:
    data = encode(Image.fromarray(picture(300, 203)))
    boxes = [Box(0, 0, 60, 60), Box(20, 3, 200, 200), Box(0, 0, 10, 203), Box(200, 0, 100, 100)]
    quick = [decode_crop(data, lambda h, w, b=box: b, 40) for box in boxes]
    monkeypatch.setattr("conadv.trainer.data.decoding.decode.first_rows", lambda data, rows: data)
    for box, pixels in zip(boxes, quick, strict=True):
        assert decode_crop(data, lambda h, w, b=box: b, 40).equal(pixels)


def test_other_files_stay_as_they_are(picture, encode) -> None:
    image = Image.fromarray(picture(160, 203))
    data = encode(image)
    at = data.index(b"\xff\xc0") + 5
    for file in (
        encode(image, progressive=True),
        encode(image, "PNG"),
        data[:-1],  # truncated
        data + b"\0",
        data[:at] + b"\0\0" + data[at + 2 :],  # height unknown
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x01\xff\xd9",
        b"\xff\xd8\xff\xc0\xff\xff\xff\xd9",
        b"\xff\xd8nothing\xff\xd9",
    ):
        assert first_rows(file, 10) is file
    assert first_rows(data, 150) is data  # hardly anything to gain


def test_components_one_after_the_other_stay_as_they_are(picture, encode) -> None:
    data = bytearray(encode(Image.fromarray(picture(160, 203))))
    data[data.index(b"\xff\xda") + 4] = 1
    assert first_rows(bytes(data), 10) == bytes(data)


def test_a_file_truncated_below_the_crop_is_still_an_error(picture, encode) -> None:
    data = encode(Image.fromarray(picture(400, 203)))[:-300]
    with pytest.raises(DecodeError, match="truncated"):
        decode_crop(data, lambda h, w: Box(0, 0, 32, 32), 32)

"""What an ImageDataset refuses, and what it works out about its images."""

import hashlib

import numpy as np
import pytest
import torch

from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset


def parts(**changes):
    generator = torch.Generator().manual_seed(1)
    values = {
        "name": "mine",
        "train_images": torch.randint(0, 256, (6, 3, 5, 4), generator=generator).byte(),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": torch.randint(0, 256, (3, 3, 5, 4), generator=generator).byte(),
        "test_labels": torch.tensor([0, 1, 2]),
        "classes": ("a", "b", "c"),
    }
    return {**values, **changes}


def test_statistics_are_those_of_the_training_images_on_the_unit_scale() -> None:
    data = ImageDataset(**parts())
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_channel_without_contrast_can_be_divided_by() -> None:
    data = ImageDataset(**parts(train_images=torch.full((6, 3, 5, 4), 9, dtype=torch.uint8)))
    assert data.std == (1 / 255,) * 3


def test_the_fingerprint_covers_every_pixel_and_label() -> None:
    data = ImageDataset(**parts())
    raw = b"".join(
        t.numpy().tobytes()
        for t in (data.train_images, data.train_labels, data.test_images, data.test_labels)
    )
    assert data.fingerprint == hashlib.sha256(raw).hexdigest()
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        changed = parts()[name].clone()
        changed.view(-1)[-1] = 0 if changed.view(-1)[-1] else 1
        assert ImageDataset(**parts(**{name: changed})).fingerprint != data.fingerprint


def test_the_fingerprint_does_not_depend_on_memory_layout() -> None:
    values = parts()
    strided = values["train_images"].contiguous(memory_format=torch.channels_last)
    assert (
        ImageDataset(**parts(train_images=strided)).fingerprint
        == ImageDataset(**values).fingerprint
    )


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", lambda t: t.float(), "torch.float32.*give uint8 of shape"),
        ("images", lambda t: t[:, 0], r"shape \(\d, 5, 4\).*give uint8 of shape"),
        ("images", lambda t: np.asarray(t), "numpy.*give a torch.Tensor on the CPU"),
        ("images", lambda t: t.to("meta"), "on meta: give a torch.Tensor on the CPU"),
        ("images", lambda t: t[:, :, :0], "no pixels"),
        ("labels", lambda t: t.int(), "torch.int32.*give int64, one per image"),
        ("labels", lambda t: t[:-1], "give int64, one per image"),
        ("labels", lambda t: t[:, None], "give int64, one per image"),
        ("labels", lambda t: t - 1, "label is -1.*from 0 to 2"),
        ("labels", lambda t: t + 1, "label is 3.*from 0 to 2. Do they begin at 1"),
        ("labels", lambda t: t * 4, r"label is 8.*from 0 to 2\.$"),
    ],
)
def test_what_is_refused(part, name, value, message) -> None:
    name = f"{part}_{name}"
    with pytest.raises(DataError, match=f"mine: {message}" if part == "" else message) as caught:
        ImageDataset(**parts(**{name: value(parts()[name])}))
    assert "mine" in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize("part", ["train", "test"])
def test_no_images_are_refused(part) -> None:
    none = {
        f"{part}_images": torch.empty(0, 3, 5, 4, dtype=torch.uint8),
        f"{part}_labels": torch.empty(0, dtype=torch.int64),
    }
    with pytest.raises(DataError, match=f"there are no {part} images"):
        ImageDataset(**parts(**none))


def test_training_and_test_images_of_different_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(3, 5, 4\), test images \(3, 4, 4\)"):
        ImageDataset(**parts(test_images=torch.zeros(3, 3, 4, 4, dtype=torch.uint8)))


def test_it_prints_without_its_pixels_and_compares_by_identity() -> None:
    data = ImageDataset(**parts())
    assert len(repr(data)) < 400
    assert data == data and data != ImageDataset(**parts())

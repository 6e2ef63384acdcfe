"""The data sets themselves: whole, checked, and refused when they are not."""

import importlib.resources

import pytest
import torch

from conadv.data import DATASETS, ImageDataset, cache_dir, load_dataset
from conadv.data.fashion import load_fashion_subset
from conadv.errors import DataError


def test_the_embedded_images_are_balanced_real_and_attributed() -> None:
    data = load_dataset("fashion-mnist-subset")
    assert data.train_images.shape == (10_000, 1, 28, 28)
    assert data.test_images.shape == (2_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [1000] * 10
    assert data.test_labels.bincount().tolist() == [200] * 10
    # The published mean and deviation of Fashion-MNIST are 0.2860 and 0.3530.
    assert data.mean[0] == pytest.approx(0.2860, abs=0.005)
    assert data.std[0] == pytest.approx(0.3530, abs=0.005)
    assert "MIT" in data.licence
    assets = importlib.resources.files("conadv.data") / "assets"
    assert "Zalando SE" in (assets / "FASHION_MNIST_LICENSE").read_text(encoding="utf-8")
    sizes = [len(file.read_bytes()) for file in assets.iterdir() if file.is_file()]
    assert sum(sizes) < 6_000_000


def test_damaged_embedded_images_are_refused() -> None:
    file = importlib.resources.files("conadv.data") / "assets" / "fashion_mnist_subset.xz"
    raw = bytearray(file.read_bytes())
    raw[1000] ^= 1
    with pytest.raises(DataError, match="damaged"):
        load_fashion_subset(bytes(raw))
    with pytest.raises(DataError, match="damaged"):
        load_fashion_subset(bytes(raw[:-10]))


def test_synthetic_is_seeded_and_has_the_size_asked_for() -> None:
    data = load_dataset("synthetic", size=8, classes=3, channels=1, train_images=30, seed=4)
    assert data.train_images.shape == (30, 1, 8, 8)
    assert data.train_labels.bincount().tolist() == [10, 10, 10]
    same = load_dataset("synthetic", size=8, classes=3, channels=1, train_images=30, seed=4)
    other = load_dataset("synthetic", size=8, classes=3, channels=1, train_images=30, seed=5)
    assert data.fingerprint == same.fingerprint != other.fingerprint


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"Did you mean cifar10\?"):
        load_dataset("cifar-10")
    for name in DATASETS:
        with pytest.raises(DataError, match=name):
            load_dataset("nothing like it")


def test_options_only_where_they_mean_something() -> None:
    with pytest.raises(TypeError, match="takes no options"):
        load_dataset("fashion-mnist-subset", size=8)


def test_statistics_are_those_of_the_pixels() -> None:
    data = load_dataset("synthetic", size=6, train_images=40)
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    images = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    data = ImageDataset("x", images, labels, images, labels, ("a",))
    assert data.std == (pytest.approx(1 / 255),)


IMAGES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "uint8"),
        (IMAGES[:, 0], LABELS, r"\(N, C, H, W\)"),
        (IMAGES, LABELS[:2], "one per image"),
        (IMAGES, LABELS.int(), "int64"),
        (IMAGES[:0], LABELS[:0], "no train images"),
        (IMAGES, torch.tensor([0, 1, 2]), "label is 2.*0 to 1.*begin at 1"),
        (IMAGES, torch.tensor([0, -1, 1]), "label is -1"),
        (torch.zeros(3, 1, 5, 5, dtype=torch.uint8), LABELS, "same size"),
    ],
)
def test_bad_images_and_labels(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset("bad", images, labels, IMAGES, LABELS, ("a", "b"))


def test_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("CONADV_DATA", str(tmp_path))
    assert cache_dir() == tmp_path

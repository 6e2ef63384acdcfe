"""load_dataset by name; the embedded images; the made-up ones."""

import lzma
from importlib import resources

import pytest
import torch

import conadv.trainer.data
from conadv.errors import DataError
from conadv.trainer.data import DATASETS, fashion, load_dataset


@pytest.fixture(scope="module")
def embedded():
    return load_dataset("fashion-mnist-subset")


def raw() -> bytes:
    return resources.files("conadv.trainer.data").joinpath("assets", fashion.FILE).read_bytes()


def test_the_embedded_images_are_balanced_and_real(embedded) -> None:
    assert embedded.train_images.shape == (10_000, 1, 28, 28)
    assert embedded.test_images.shape == (2_000, 1, 28, 28)
    assert torch.bincount(embedded.train_labels).tolist() == [1000] * 10
    assert torch.bincount(embedded.test_labels).tolist() == [200] * 10
    assert len(embedded.classes) == 10
    # Of all 60,000 images the mean is 0.2860 and the standard deviation 0.3530.
    assert embedded.mean == pytest.approx((0.2860,), abs=2e-3)
    assert embedded.std == pytest.approx((0.3530,), abs=2e-3)
    # The published order begins with an ankle boot, a T-shirt and a T-shirt; the test set with an
    # ankle boot, a pullover and trousers.
    assert embedded.train_labels[:3].tolist() == [9, 0, 0]
    assert embedded.test_labels[:3].tolist() == [9, 2, 1]


def test_the_classes_can_be_told_apart_by_their_mean_image(embedded) -> None:
    # Pixels and labels that did not belong together would give one in ten.
    train, test = embedded.train_images.flatten(1).float(), embedded.test_images.flatten(1).float()
    means = torch.stack([train[embedded.train_labels == c].mean(0) for c in range(10)])
    accuracy = (torch.cdist(test, means).argmin(1) == embedded.test_labels).float().mean()
    assert accuracy > 0.6


def test_no_test_image_is_a_training_image(embedded) -> None:
    train = {image.numpy().tobytes() for image in embedded.train_images}
    same = sum(image.numpy().tobytes() in train for image in embedded.test_images)
    assert same == 0


def test_the_embedded_images_cannot_change_silently(embedded) -> None:
    assert embedded.fingerprint == (
        "88b0880a27d91a2e307db2c45852e7cbaa489653e6aac9cb191915f93ad97260"
    )


def test_the_embedded_file_is_small_and_carries_its_licence(embedded) -> None:
    folder = resources.files("conadv.trainer.data").joinpath("assets")
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) <= 6 * 2**20
    licence = folder.joinpath("FASHION_MNIST_LICENSE").read_text()
    assert "MIT" in embedded.licence and "MIT License" in licence and "Zalando SE" in licence
    assert "without restriction" in licence and "shall be included in all copies" in licence


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[:-100], lambda c: b"", lambda c: lzma.compress(b"other")],
    ids=["one bit", "truncated", "empty", "foreign"],
)
def test_damaged_embedded_images_are_refused(damage) -> None:
    with pytest.raises(DataError, match="damaged: install conadv again"):
        fashion.load_fashion_subset(damage(raw()))


def test_missing_embedded_images_say_so(monkeypatch) -> None:
    monkeypatch.setattr(fashion, "FILE", "gone.xz")
    with pytest.raises(DataError, match="lacks its images"):
        load_dataset("fashion-mnist-subset")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean cifar10") as caught:
        load_dataset("cifar-10")
    assert all(name in str(caught.value) for name in DATASETS)
    with pytest.raises(DataError) as caught:
        load_dataset("imagenet")
    assert "Did you mean" not in str(caught.value)


def test_options_belong_to_the_synthetic_images_alone() -> None:
    with pytest.raises(TypeError, match="fashion-mnist-subset takes no options, given: size"):
        load_dataset("fashion-mnist-subset", size=3)
    with pytest.raises(TypeError, match="sise"):
        load_dataset("synthetic", sise=3)


def test_everything_public_is_there() -> None:
    assert all(hasattr(conadv.trainer.data, name) for name in conadv.trainer.data.__all__)


# -- synthetic -------------------------------------------------------------------------------------


def test_synthetic_images_are_what_was_asked_for() -> None:
    data = load_dataset(
        "synthetic", size=9, classes=3, channels=2, train_images=14, test_images=5, seed=4
    )
    assert data.train_images.shape == (14, 2, 9, 9) and data.test_images.shape == (5, 2, 9, 9)
    assert torch.bincount(data.train_labels).tolist() == [5, 5, 4]
    assert len(data.classes) == 3


def test_synthetic_images_follow_from_their_seed() -> None:
    first, again, other = (load_dataset("synthetic", seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_synthetic_classes_can_be_learned() -> None:
    data = load_dataset("synthetic")
    train, test = data.train_images.flatten(1).float(), data.test_images.flatten(1).float()
    means = torch.stack([train[data.train_labels == c].mean(0) for c in range(4)])
    assert (torch.cdist(test, means).argmin(1) == data.test_labels).float().mean() > 0.9


@pytest.mark.parametrize("option", ["size", "classes", "channels", "train_images", "test_images"])
def test_synthetic_images_need_positive_numbers(option) -> None:
    with pytest.raises(DataError, match=f"{option}=0: give 1 or more"):
        load_dataset("synthetic", **{option: 0})

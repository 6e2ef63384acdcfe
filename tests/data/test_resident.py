"""Batched augmentation against one image at a time."""

import pytest
import torch
from torch import Tensor

from conadv.data import Augment, ResidentSource, load_dataset, standardise
from conadv.data.resident import Draws, augment_batch, draws

DATA = load_dataset("synthetic", size=12, train_images=60, channels=3)
ALL = torch.arange(60)
CPU = torch.device("cpu")


def naive(image: Tensor, augment: Augment, numbers: list[float]) -> Tensor:
    """Flip, then pad and crop, then cut out: the definition, one image at a time."""
    _, height, width = image.shape
    pad = augment.crop_padding
    if augment.flip and numbers[2] < 0.5:
        image = image.flip(2)
    if pad:
        top, left = (int(numbers[i] * (2 * pad + 1)) for i in (0, 1))
        padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        image = padded[:, top : top + height, left : left + width]
    image = image.clone()
    if augment.cutout:
        top = int(numbers[3] * height) - augment.cutout // 2
        left = int(numbers[4] * width) - augment.cutout // 2
        bottom, right = top + augment.cutout, left + augment.cutout
        image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
    return image


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop_padding=2),
        Augment(flip=True),
        Augment(cutout=5),
        Augment(crop_padding=3, flip=True, cutout=4),
    ],
)
def test_batched_equals_one_at_a_time(augment: Augment) -> None:
    numbers = draws(5, 3, 60)
    batched = augment_batch(DATA.train_images, augment, numbers)
    rows = zip(DATA.train_images, numbers.numbers.tolist(), strict=True)
    single = torch.stack([naive(image, augment, row) for image, row in rows])
    assert torch.equal(batched, single)


def test_flip_is_seen_from_the_image_and_not_from_the_crop() -> None:
    # A flipped image that is then shifted right: the order of the two matters.
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 0] = 9
    numbers = Draws(torch.tensor([[0.5, 0.99, 0.1, 0.0, 0.0]], dtype=torch.float64))
    result = augment_batch(image, Augment(crop_padding=1, flip=True), numbers)
    assert result[0, 0, 0].tolist() == [0, 0, 9, 0]


def test_micro_batches_and_ranks_change_nothing() -> None:
    augment = Augment(crop_padding=2, flip=True, cutout=3)
    source = ResidentSource(DATA, ALL, CPU, augment, seed=1)
    whole, labels = source.batch(ALL, step=4)
    for cut in (7, 20):
        parts = [
            source.batch(ALL[i : i + cut], step=4, start=i, total=60) for i in range(0, 60, cut)
        ]
        assert torch.equal(torch.cat([images for images, _ in parts]), whole)
        assert torch.equal(torch.cat([labels for _, labels in parts]), labels)


def test_steps_seeds_and_views_differ() -> None:
    augment = Augment(crop_padding=2, flip=True)
    source = ResidentSource(DATA, ALL, CPU, augment, seed=1)
    first = source.batch(ALL, step=0)[0]
    assert torch.equal(first, source.batch(ALL, step=0)[0])
    assert not torch.equal(first, source.batch(ALL, step=1)[0])
    assert not torch.equal(first, source.batch(ALL, step=0, view=1)[0])
    other = ResidentSource(DATA, ALL, CPU, augment, seed=2)
    assert not torch.equal(first, other.batch(ALL, step=0)[0])


def test_draws_are_uniform_and_cover_every_shift() -> None:
    numbers = draws(0, 0, 20_000)
    assert float(numbers.numbers.min()) >= 0
    assert float(numbers.numbers.max()) < 1
    counts = numbers.integers(0, 5).bincount(minlength=5) / 20_000
    assert torch.allclose(counts, torch.full((5,), 0.2), atol=0.02)


def test_indices_choose_the_images() -> None:
    chosen = torch.tensor([5, 7, 11])
    source = ResidentSource(DATA, chosen, CPU, Augment(), seed=0)
    images, labels = source.batch(torch.tensor([2, 0]), step=0)
    expected = standardise(DATA.train_images[[11, 5]], DATA.mean, DATA.std)
    assert torch.equal(images, expected)
    assert labels.tolist() == DATA.train_labels[[11, 5]].tolist()
    assert len(source) == 3


def test_channels_last() -> None:
    source = ResidentSource(DATA, ALL, CPU, Augment(flip=True), seed=0, channels_last=True)
    images, _ = source.batch(ALL, step=0)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_standardised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = standardise(DATA.train_images, DATA.mean, DATA.std).double()
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standardise(DATA.train_images, (0.5,), (0.2,)), "one per channel"),
        (lambda: Augment(crop_padding=-1), "0 or more"),
        (
            lambda: ResidentSource(DATA, ALL, CPU, Augment(), 0).batch(ALL, 0, start=1, total=60),
            "whole step",
        ),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

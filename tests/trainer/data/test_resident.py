"""Batches from resident images, against one image at a time."""

import pytest
import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data import load_dataset
from conadv.trainer.data.augment import Augment, draw
from conadv.trainer.data.resident import ResidentSource, standardise

DATA = load_dataset("synthetic", size=12, train_images=60, channels=3)
ALL = torch.arange(60)
CPU = torch.device("cpu")
EVERYTHING = Augment(crop_padding=3, flip=True, cutout=4)


def source(augment=EVERYTHING, indices=ALL, seed=1, data=DATA, **options) -> ResidentSource:
    return ResidentSource(data, indices, CPU, augment, seed, **options)


def naive(image: Tensor, augment: Augment, drawn: list[int]) -> Tensor:
    """Flip, then pad and crop, then cut out: the definition, one image at a time."""
    _, height, width = image.shape
    pad = augment.crop_padding
    top, left, flip, row, column = drawn
    if augment.flip and flip:
        image = image.flip(2)
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
    image = padded[:, top : top + height, left : left + width].clone()
    if augment.cutout:
        above, before = row - augment.cutout // 2, column - augment.cutout // 2
        below, after = above + augment.cutout, before + augment.cutout
        image[:, max(above, 0) : max(below, 0), max(before, 0) : max(after, 0)] = 0
    return image


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(crop_padding=2),
        Augment(flip=True),
        Augment(cutout=5),
        EVERYTHING,
        Augment(crop_padding=11, flip=True, cutout=30),
    ],
    ids=repr,
)
def test_batched_equals_one_at_a_time(augment, channels, channels_last) -> None:
    data = load_dataset("synthetic", size=12, train_images=60, channels=channels)
    samples = torch.randperm(60)[:40]
    images, labels = source(augment, data=data, channels_last=channels_last).batch(samples, 5)
    drawn = draw(augment, (12, 12), 1, 5, 40).T.tolist()
    expected = torch.stack(
        [naive(data.train_images[i], augment, d) for i, d in zip(samples, drawn, strict=True)]
    )
    assert images.equal(standardise(expected, data.mean, data.std))
    assert images.dtype == torch.float32 and labels.equal(data.train_labels[samples])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


def test_images_need_not_be_square() -> None:
    wide = torch.arange(2 * 2 * 3 * 5).reshape(2, 2, 3, 5).byte()
    labels = torch.tensor([0, 1])
    data = type(DATA)("wide", wide, labels, wide, labels, ("a", "b"))
    augment = Augment(crop_padding=2, flip=True, cutout=2)
    images, _ = source(augment, torch.arange(2), data=data).batch(torch.arange(2), 0)
    drawn = draw(augment, (3, 5), 1, 0, 2).T.tolist()
    expected = torch.stack([naive(i, augment, d) for i, d in zip(wide, drawn, strict=True)])
    assert images.equal(standardise(expected, data.mean, data.std))


def test_a_flipped_image_that_is_shifted() -> None:
    # The order of the two matters: the left edge, flipped to the right, then moved by the crop.
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 0] = 9
    augment = Augment(crop_padding=1, flip=True)
    assert naive(image[0], augment, [1, 2, 1, 0, 0])[0, 0].tolist() == [0, 0, 9, 0]


def test_indices_choose_the_images() -> None:
    chosen = torch.tensor([5, 7, 11])
    part = source(Augment(), chosen)
    images, labels = part.batch(torch.tensor([2, 0]), 0)
    assert images.equal(standardise(DATA.train_images[[11, 5]], DATA.mean, DATA.std))
    assert labels.equal(DATA.train_labels[[11, 5]])
    assert len(part) == 3


def test_batches_share_no_memory_with_the_source() -> None:
    feed = source(Augment())
    first = feed.batch(ALL, 0)[0].clone()
    feed.batch(ALL, 0)[0].zero_()
    assert feed.batch(ALL, 0)[0].equal(first)


# -- a pure function -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 20, 59])
def test_micro_batches_and_ranks_change_nothing(cut) -> None:
    whole, labels = source().batch(ALL, 4)
    parts = [
        source().batch(ALL[i : i + cut], 4, start=i, total=60)  # each from a source of its own
        for i in range(0, 60, cut)
    ]
    assert torch.cat([images for images, _ in parts]).equal(whole)
    assert torch.cat([labels for _, labels in parts]).equal(labels)


def test_steps_seeds_and_views_differ() -> None:
    first = source().batch(ALL, 0)[0]
    assert first.equal(source().batch(ALL, 0)[0])
    assert not first.equal(source().batch(ALL, 1)[0])
    assert not first.equal(source().batch(ALL, 0, view=1)[0])
    assert not first.equal(source(seed=2).batch(ALL, 0)[0])


def test_what_came_before_makes_no_difference() -> None:
    feed = source()
    feed.batch(ALL, 0)
    feed.batch(ALL[:7], 3, view=2)
    assert feed.batch(ALL, 9)[0].equal(source().batch(ALL, 9)[0])


# -- standardise -----------------------------------------------------------------------------------


def test_standardised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = standardise(DATA.train_images, DATA.mean, DATA.std).double()
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5)


def test_standardise_against_the_formula_in_double() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)
    mean, std = (0.3, 0.6), (0.2, 0.3)
    exact = (levels.double() / 255 - torch.tensor(mean).view(1, 2, 1, 1).double()) / torch.tensor(
        std
    ).double().view(1, 2, 1, 1)
    got = standardise(levels, mean, std)
    assert torch.allclose(got.double(), exact, rtol=0, atol=2e-6)
    assert levels.flatten().tolist() == list(range(256))  # what was given is left alone


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standardise(DATA.train_images, (0.5,), (0.2,)), "one per channel"),
        (lambda: standardise(DATA.train_images, (0.5,) * 3, (0.2,)), "std 1.*one per channel"),
        (lambda: standardise(DATA.train_images.float(), (0.5,) * 3, (0.2,) * 3), "give uint8"),
        (lambda: source().batch(ALL, 0, start=1, total=60), "whole step"),
        (lambda: source().batch(torch.tensor([0, 60]), 0), "from 0 to 60.*from 0 to 59"),
        (lambda: source().batch(torch.tensor([-1]), 0), "from -1 to -1"),
        (lambda: source(Augment(crop_padding=12)), "all black; give 0 to 11"),
    ],
)
def test_bad_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([], dtype=torch.int64), "at least one"),
        (torch.tensor([0.0]), "give int64"),
        (torch.tensor([[0]]), r"shape \(1, 1\): give int64 of shape"),
        (torch.tensor([0, 60]), "from 0 to 60, but synthetic has 60.*give 0 to 59"),
        (torch.tensor([-1, 3]), "from -1 to 3"),
    ],
)
def test_indices_of_no_image(indices, message) -> None:
    with pytest.raises(DataError, match=message):
        source(indices=indices)

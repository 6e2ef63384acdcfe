"""Training and validation: apart, balanced, and the same every time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.data.split import split


def dataset(labels):
    labels = torch.tensor(labels)
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    classes = tuple("abcdefgh"[: int(labels.max()) + 1])
    return ImageDataset("mine", images, labels, images, labels, classes)


EVEN = dataset([i % 4 for i in range(80)])
SKEWED = dataset([0] * 60 + [1] * 30 + [2] * 10)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=60),
    st.floats(0, 0.49),
    st.integers(0, 9),
    st.data(),
)
def test_the_parts_are_apart_and_complete(labels, validation, seed, data) -> None:
    used = data.draw(st.none() | st.integers(2, len(labels)))
    train, held_out = split(dataset(labels), validation, seed, used)
    both = torch.cat([train, held_out])
    assert len(both.unique()) == len(both) == (used or len(labels))
    assert train.equal(train.sort().values) and held_out.equal(held_out.sort().values)
    assert (len(held_out) > 0) == (validation > 0)
    assert abs(len(held_out) - validation * len(both)) <= 0.5 or len(held_out) == 1


@pytest.mark.parametrize("validation", [0.05, 0.1, 0.25, 0.5])
def test_classes_keep_their_shares(validation) -> None:
    for data in (EVEN, SKEWED):
        whole = torch.bincount(data.train_labels)
        train, held_out = split(data, validation, 0)
        got = torch.bincount(data.train_labels[held_out], minlength=len(whole))
        assert (got - whole * validation).abs().max() <= 1
        assert len(train) + len(held_out) == len(data.train_labels)


def test_fewer_training_images_keep_the_shares_too() -> None:
    train, held_out = split(SKEWED, 0.1, 0, train_images=50)
    assert len(held_out) == 5
    counts = torch.bincount(SKEWED.train_labels[torch.cat([train, held_out])])
    assert (counts - torch.tensor([30, 15, 5])).abs().max() <= 1


def test_it_follows_from_the_seed() -> None:
    first, again, other = (split(EVEN, 0.25, seed)[1] for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    assert split(EVEN, 0.1, 0)[1].tolist() == [
        3,
        5,
        8,
        18,
        25,
        35,
        36,
        54,
    ]  # frozen, like the order


def test_nothing_held_out_is_allowed() -> None:
    train, held_out = split(EVEN, 0, 0)
    assert train.equal(torch.arange(80)) and held_out.shape == (0,)


@pytest.mark.parametrize("wanted", [0, -1, 81])
def test_images_that_are_not_there(wanted) -> None:
    with pytest.raises(DataError, match=f"train_images={wanted}, but mine has 80: give 1 to 80"):
        split(EVEN, 0.1, 0, wanted)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_impossible_shares(share) -> None:
    with pytest.raises(DataError, match="from 0 to below 1"):
        split(EVEN, share, 0)


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(DataError, match="leaves none to train on"):
        split(EVEN, 0.1, 0, train_images=1)

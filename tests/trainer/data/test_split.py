"""Training and validation: apart, balanced, and the same every time."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.data.sampler import permutation
from conadv.trainer.data.split import Rest, divide, split


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


def by_sorting(data, count: int, seed: int) -> torch.Tensor:
    """The same order from tables of everything: what was computed before there were chunks."""
    order = permutation(seed, 2**32, len(data.train_labels))
    labels = data.train_labels[order].numpy()
    place = np.empty(len(labels))
    for label in range(len(data.classes)):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / max(1, len(members))
    return order[torch.from_numpy(np.argsort(place, kind="stable"))][:count]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 5]), min_size=2, max_size=80),
    st.floats(0, 0.9),
    st.integers(0, 9),
    st.integers(1, 90),
    st.data(),
)
def test_chunks_choose_what_tables_of_everything_choose(
    labels, validation, seed, chunk, data
) -> None:
    images = dataset(labels)
    used = data.draw(st.none() | st.integers(2, len(labels)))
    wanted = used or len(labels)
    held_out = max(1, round(wanted * validation)) if validation else 0
    if held_out == wanted:
        return
    order = by_sorting(images, wanted, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conadv.trainer.data.split.CHUNK", chunk)
        train, val = split(images, validation, seed, used)
    assert val.equal(order[:held_out].sort().values)
    assert train.equal(order[held_out:].sort().values)


def test_the_rest_is_every_other_image() -> None:
    without = torch.tensor([0, 1, 4, 9])
    rest = Rest(10, without)
    expected = torch.tensor([2, 3, 5, 6, 7, 8])
    assert len(rest) == 6 and rest[torch.arange(6)].equal(expected)
    assert rest[torch.tensor([5, 0, 0])].tolist() == [8, 2, 2]
    assert Rest(3, without[:0])[torch.arange(3)].tolist() == [0, 1, 2]


def test_memory_does_not_grow_with_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images held out of 100,000 and of 400,000; labels themselves take none here."""
    monkeypatch.setattr("conadv.trainer.data.sampler.WHOLE", 1000)
    monkeypatch.setattr("conadv.trainer.data.split.CHUNK", 5000)
    peaks = []
    for count in (100_000, 400_000):
        labels = torch.zeros(1, dtype=torch.int64).expand(count)
        source = SimpleNamespace(name="large", train_labels=labels, classes=("a", "b"))
        tracemalloc.start()
        try:
            train, held_out = divide(source, 100 / count, 0)
            train[torch.arange(1000) * (len(train) // 1000)]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(train) == count - 100 and len(held_out) == 100
    assert peaks[1] < 1.1 * peaks[0] < 4_000_000, peaks

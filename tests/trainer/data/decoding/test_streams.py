"""Random streams: what they depend on, and that global generators are put back."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conadv.trainer.data.augment import VIEWS, Augment, draw
from conadv.trainer.data.decoding.streams import (
    batch_words,
    fractions,
    global_streams,
    image_words,
)


def test_the_words_are_frozen() -> None:
    # A promise to everyone who resumes or repeats a run: if a change of the code changes these
    # values, the code is wrong.
    assert image_words(3, 7, 0, 0, 2).tolist() == [
        4_127_036_223_477_499_581,
        10_496_124_110_465_677_561,
    ]
    assert image_words(-1, 2**40, 98_301, 5, 2).tolist() == [
        10_796_515_548_654_277_513,
        15_255_513_566_604_364_029,
    ]
    assert batch_words(3, 7, 2, 2).tolist() == [
        8_758_374_344_889_947_426,
        9_922_084_477_705_178_981,
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32), st.integers(0, 2**20), st.integers(1, 40))
def test_more_words_begin_with_the_same(seed, step, place, count) -> None:
    words = image_words(seed, step, place, 1, 40)
    assert (image_words(seed, step, place, 1, count) == words[:count]).all()


def test_everything_has_a_stream_of_its_own() -> None:
    found = set()
    for seed in range(2):
        for step in range(3):
            for place in range(4):
                found |= {int(image_words(seed, step, place, v, 1)[0]) for v in range(VIEWS)}
            found |= {int(w) for index in range(5) for w in batch_words(seed, step, index, 1)}
    assert len(found) == 2 * 3 * (4 * VIEWS + 5)


def test_streams_are_not_those_of_the_resident_source() -> None:
    drawn = draw(Augment(crop_padding=4, flip=True, cutout=8), (2**20, 2**20), 0, 0, 8)
    numbers = fractions(image_words(0, 0, 0, 0, 40))
    assert not {int(n * 2**20) for n in numbers} & set(drawn[3].tolist())


def test_fractions_are_in_the_unit_interval() -> None:
    assert fractions(np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)) == [0.0, 0.5, 1 - 2**-53]


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_global_generators_are_seeded_and_put_back() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = drawn()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with global_streams(2**64 - 5):
        inside = drawn()
    assert drawn() == expected
    with pytest.raises(KeyError), global_streams(2**64 - 5):
        assert drawn() == inside
        raise KeyError
    with global_streams(2**64 - 6):
        assert not set(drawn()) & set(inside)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: image_words(0, -1, 0, 0, 1), "step=-1"),
        (lambda: image_words(0, 0, -1, 0, 1), "place=-1"),
        (lambda: image_words(0, 0, 0, VIEWS, 1), "view=16"),
        (lambda: batch_words(0, 0, -1, 1), "index=-1"),
    ],
)
def test_what_is_out_of_range(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()

"""Crops by torchvision's rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from conadv.trainer.data.decoding.decode import (
    ATTEMPTS,
    NUMBERS,
    Box,
    centre,
    middle_box,
    random_box,
    resized,
)

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_crop_lies_in_the_image(height, width, seed) -> None:
    numbers = np.random.default_rng(seed).random(NUMBERS).tolist()
    top, left, tall, wide = random_box(height, width, SCALE, RATIO, numbers)
    assert 0 <= top <= top + tall <= height and tall >= 1
    assert 0 <= left <= left + wide <= width and wide >= 1


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (40, 400), (300, 301)])
def test_crops_are_distributed_as_torchvisions(height, width) -> None:
    generator = np.random.default_rng(3)
    ours = [
        random_box(height, width, SCALE, RATIO, generator.random(NUMBERS).tolist())
        for _ in range(4000)
    ]
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    make = v2.RandomResizedCrop(8, SCALE, RATIO).make_params
    theirs = [make([image]) for _ in range(4000)]
    for place, name in enumerate(Box._fields):
        a = np.array([box[place] for box in ours], dtype=float)
        b = np.array([params[name] for params in theirs], dtype=float)
        # Five standard errors of the difference of two means.
        assert abs(a.mean() - b.mean()) <= 5 * math.sqrt((a.var() + b.var()) / 4000) + 1e-9
        assert abs(np.quantile(a, 0.9) - np.quantile(b, 0.9)) <= 0.05 * max(height, width)


def test_a_crop_is_computed_from_its_numbers() -> None:
    # The first attempt is the whole area at the largest ratio, which does not fit; the second a
    # quarter of the area, square.
    numbers = [0.5, 0.999, 1.0, 1.0, (0.25 - 0.08) / 0.92, 0.5, *[0.0] * 2 * (ATTEMPTS - 2)]
    assert random_box(100, 100, SCALE, RATIO, numbers) == Box(25, 50, 50, 50)


def test_where_nothing_fits_the_middle_is_taken() -> None:
    assert random_box(10, 1000, SCALE, RATIO, [0.9] * NUMBERS) == Box(0, 493, 10, 13)
    assert middle_box(1000, 30, RATIO) == Box(480, 0, 40, 30)
    assert middle_box(30, 35, RATIO) == Box(0, 0, 30, 35)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(8, 64))
def test_evaluation_sizes_and_places_are_torchvisions(height, width, shorter) -> None:
    if max(height, width) > 20 * min(height, width):
        return
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    whole = functional.resize(image, [shorter], antialias=False)
    assert resized(height, width, shorter) == tuple(whole.shape[1:])
    marks = torch.arange(whole[0].numel()).view(whole.shape)
    top, left, tall, wide = centre(*whole.shape[1:], 8)
    expected = functional.center_crop(marks, [8])
    assert marks[:, top : top + tall, left : left + wide].equal(expected)

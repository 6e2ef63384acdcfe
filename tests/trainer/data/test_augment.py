"""Batched augmentation against one image at a time, and the numbers it goes by."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conadv.trainer.data.augment import VIEWS, Augment, cut_out, draw, flip_some, windows

AUGMENT = Augment(crop_padding=4, flip=True, cutout=8)
SIZE = (32, 32)


def numbers(seed=0, step=0, count=6, **options) -> Tensor:
    return draw(AUGMENT, SIZE, seed, step, count, **options)


# -- the numbers -----------------------------------------------------------------------------------


def test_the_numbers_are_frozen() -> None:
    # A promise to everyone who resumes or repeats a run: if a change of the code changes these
    # values, the code is wrong.
    assert numbers(seed=3, step=7, count=4).tolist() == [
        [0, 3, 0, 3],
        [7, 0, 0, 3],
        [1, 1, 1, 0],
        [1, 3, 10, 8],
        [11, 21, 8, 29],
    ]
    assert numbers(seed=-1, step=2**40, count=2, start=98_301, view=5).tolist() == [
        [0, 1],
        [5, 8],
        [0, 0],
        [17, 24],
        [6, 9],
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, VIEWS - 1),
)
def test_a_part_of_a_step_is_that_part_of_the_whole(seed, step, start, count, view) -> None:
    whole = numbers(seed, step, 100, view=view)
    part = numbers(seed, step, count, start=start, view=view)
    assert part.equal(whole[:, start : start + count])


def test_steps_views_and_seeds_have_numbers_of_their_own() -> None:
    keys = [(seed, step, view) for seed in range(3) for step in range(3) for view in range(VIEWS)]
    drawn = {tuple(numbers(s, t, 8, view=v).flatten().tolist()) for s, t, v in keys}
    assert len(drawn) == len(keys)


def test_switching_one_thing_off_leaves_the_others_as_they_were() -> None:
    both, alone = numbers(count=50), draw(Augment(flip=True), SIZE, 0, 0, 50)
    assert both[2].equal(alone[2])  # flips
    assert both[3:].equal(alone[3:])  # centres of the cutout
    assert alone[:2].eq(0).all()  # no padding, one place


@pytest.mark.parametrize(("row", "values"), [(0, 9), (1, 9), (2, 2), (3, 32), (4, 32)])
def test_the_numbers_are_uniform_and_in_range(row, values) -> None:
    count = 20_000
    counts = torch.bincount(numbers(count=count)[row], minlength=values)
    assert len(counts) == values
    # Five standard deviations of a binomial count.
    assert (counts - count / values).abs().max() < 5 * (count / values) ** 0.5


def test_the_numbers_of_an_image_do_not_depend_on_each_other() -> None:
    correlation = torch.corrcoef(numbers(count=20_000).double())
    assert (correlation - torch.eye(5)).abs().max() < 5 / 20_000**0.5


def test_the_callers_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    numbers()
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": VIEWS}, f"view={VIEWS}: views run from 0 to {VIEWS - 1}"),
        ({"view": -1}, "view=-1"),
        ({"step": -1}, "both count from 0"),
        ({"start": -1}, "both count from 0"),
    ],
)
def test_numbers_that_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        numbers(**options)


@pytest.mark.parametrize("options", [{"crop_padding": -1}, {"cutout": -2}])
def test_negative_pixels_are_refused(options) -> None:
    with pytest.raises(ValueError, match="give pixels, 0 or more"):
        Augment(**options)


def test_active_means_that_something_is_done() -> None:
    assert not Augment().active
    assert all(a.active for a in (Augment(crop_padding=1), Augment(flip=True), Augment(cutout=1)))


# -- the pixels ------------------------------------------------------------------------------------

IMAGES = torch.randint(1, 256, (5, 7, 6, 3), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_windows_are_all_the_crops(padding) -> None:
    padded = torch.nn.functional.pad(IMAGES, (0, 0, padding, padding, padding, padding))
    crops = windows(padded, padding)
    assert crops.shape == (5, 2 * padding + 1, 2 * padding + 1, 7, 6, 3)
    assert crops.untyped_storage().data_ptr() == padded.untyped_storage().data_ptr()
    for y in range(2 * padding + 1):
        for x in range(2 * padding + 1):
            assert crops[:, y, x].equal(padded[:, y : y + 7, x : x + 6])


def test_only_the_chosen_images_are_flipped() -> None:
    flipped = flip_some(IMAGES, torch.tensor([True, False, True, False, False]))
    assert flipped[[0, 2]].equal(IMAGES[[0, 2]].flip(2))
    assert flipped[[1, 3, 4]].equal(IMAGES[[1, 3, 4]])


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_is_a_square_around_its_centre(side) -> None:
    rows, columns = torch.tensor([0, 3, 6, 2, 5]), torch.tensor([0, 3, 5, 0, 1])
    got = cut_out(IMAGES.clone(), side, rows, columns)
    for image in range(5):
        for y in range(7):
            for x in range(6):
                top, left = int(rows[image]) - side // 2, int(columns[image]) - side // 2
                inside = top <= y < top + side and left <= x < left + side
                expected = torch.zeros(3).byte() if inside else IMAGES[image, y, x]
                assert got[image, y, x].equal(expected)

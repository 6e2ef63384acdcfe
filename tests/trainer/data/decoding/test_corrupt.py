"""Counting and replacing damaged images."""

import pytest

from conadv.errors import DataError
from conadv.trainer.data.decoding.loader import NAMED, ImageCounts, substitutes


def test_the_next_good_one_takes_the_place() -> None:
    assert substitutes(5, []) == {}
    assert substitutes(5, [1]) == {1: 2}
    assert substitutes(5, {1: "", 2: "", 4: ""}) == {1: 3, 2: 3, 4: 0}
    assert substitutes(2, [1, 0][:1]) == {1: 0}


def bad(*names: str) -> list[tuple[str, str]]:
    return [(name, "truncated") for name in names]


def test_a_share_is_too_much_only_from_ten_on() -> None:
    counts = ImageCounts(0.001)
    for number in range(9):
        counts.add(10, bad(f"{number}.jpg"))
    with pytest.raises(DataError) as error:
        counts.add(10, bad("9.jpg"))
    assert str(error.value) == (
        "10 of 100 images read cannot be decoded, more than 0.10%: 0.jpg (truncated); "
        "1.jpg (truncated); 2.jpg (truncated) ... Fetch the data again, or raise max_corrupt."
    )
    assert (counts.read, counts.corrupt) == (100, 10)


def test_few_among_many_are_borne() -> None:
    counts = ImageCounts(0.001)
    counts.add(1_000_000, [])
    for number in range(500):
        counts.add(1, bad(f"{number}.jpg"))
    assert counts.corrupt == 500
    assert len(counts.named) == NAMED


def test_the_same_image_twice_counts_twice_and_is_named_once() -> None:
    counts = ImageCounts(1.0, at_least=1)
    counts.add(2, bad("a.jpg", "a.jpg"))
    assert counts.corrupt == 2
    assert counts.named == {"a.jpg": "truncated"}


def test_one_may_be_too_many() -> None:
    counts = ImageCounts(0.0, at_least=1)
    counts.add(5, [])
    with pytest.raises(DataError, match=r"1 of 6 images .* more than 0.00%: a.jpg"):
        counts.add(1, bad("a.jpg"))


def test_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"max_corrupt=2: give a share"):
        ImageCounts(2)
    with pytest.raises(ValueError, match=r"at_least=0"):
        ImageCounts(0.1, at_least=0)

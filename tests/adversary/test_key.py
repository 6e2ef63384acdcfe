"""`Adversary.key`: random numbers of an attack that are the same on any number of devices."""

from pathlib import Path

import pytest
import torch

from support.keyed import ROUNDS, copies_of, on_ranks


@pytest.mark.slow
def test_ranks_draw_the_same_with_a_key_and_differently_without(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path)
    assert torch.equal(first["keyed"], second["keyed"])
    assert torch.equal(first["keyed"], copies_of([7, 8, 7])), "as without a process group"
    assert torch.equal(first["by rank"], copies_of([None] * ROUNDS)), "rank 0 is as one alone"
    for ours, theirs in zip(first["by rank"], second["by rank"], strict=True):
        assert not torch.equal(ours, theirs)


def test_equal_keys_draw_the_same() -> None:
    one, other, again = copies_of([7, 8, 7])
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_without_a_key_every_round_draws_anew() -> None:
    one, other, third = copies_of([None] * ROUNDS)
    assert not torch.equal(one, other) and not torch.equal(other, third)


def test_the_key_does_not_depend_on_the_rounds_before() -> None:
    assert torch.equal(copies_of([3, 1, 2, 9])[-1], copies_of([9])[0])


def test_the_seed_still_counts() -> None:
    assert not torch.equal(copies_of([7]), copies_of([7], seed=1))


def test_lookahead_draws_by_the_key_of_the_round_that_attacks() -> None:
    first, second = copies_of([7, 8, 9], "lookahead"), copies_of([7, 8, 1], "lookahead")
    assert torch.equal(first[1:], second[1:]) and bool(first[1:].any())
    assert not torch.equal(first[1], copies_of([5, 8], "lookahead")[1])

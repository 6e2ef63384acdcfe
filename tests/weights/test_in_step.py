"""Passes that wait for other ranks (SyncBatchNorm): every rank takes as many, whatever it keeps."""

import pytest
import torch

from support import gloo
from support.sync_ranks import HALF, WORLD


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> gloo.Results:
    return gloo.run_cases("support.sync_ranks", WORLD, tmp_path_factory)


def assert_same(left, right) -> None:
    for name in left:
        assert torch.equal(left[name], right[name]), name
        assert left[name].isfinite().all(), name


@pytest.mark.parametrize("schedule", HALF)
def test_a_share_that_one_rank_has_and_the_other_has_not(ranks, schedule: str) -> None:
    one, two = gloo.of_case(ranks, "share", schedule)
    assert_same(one["parameters"], two["parameters"])
    if schedule in ("recycled", "sequential, mixed"):
        assert one["seen"][-1] == 8 and two["seen"][-1] == 16


@pytest.mark.parametrize("schedule", ["recycled", "slot"])
def test_a_gradient_that_overflowed_on_one_rank(ranks, schedule: str) -> None:
    one, two = gloo.of_case(ranks, "overflow", schedule)
    assert_same(one["parameters"], two["parameters"])
    if schedule == "recycled":
        assert one["seen"][2] == 16 and two["seen"][2] == 12


@pytest.mark.parametrize("schedule", ["sequential", "recycled", "lookahead", "slot"])
@pytest.mark.parametrize("what", ["skip", "ragged", "branch"])
def test_a_round_that_one_rank_skips_and_a_micro_batch_more(ranks, what: str, schedule) -> None:
    one, two = gloo.of_case(ranks, what, schedule)
    assert_same(one["parameters"], two["parameters"])


def test_images_and_weights_together(ranks) -> None:
    one, two = gloo.of_case(ranks, "both", "recycled")
    assert_same(one["parameters"], two["parameters"])
    assert one["seen"][-1] == 16 and two["seen"][-1] == 24


@pytest.mark.parametrize("schedule", HALF)
def test_a_pass_for_other_ranks_alone_changes_nothing(ranks, schedule: str) -> None:
    """Neither gradients nor random numbers: on a model whose passes do not wait."""
    free, forced = (gloo.of_case(ranks, way, schedule) for way in ("free", "forced"))
    for left, right in zip(free, forced, strict=True):
        assert_same(left["parameters"], right["parameters"])
        assert torch.equal(left["random"], right["random"])

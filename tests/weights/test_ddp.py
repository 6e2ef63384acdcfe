"""DistributedDataParallel on two gloo ranks, against one process that has all micro-batches."""

import pytest
import torch

from conadv.weights import Sequential, WeightAttack
from support import gloo
from support.loops import network
from support.weight_ranks import DATA, SIZE, WORLD
from support.weights import ATTACK, SCHEDULES, train

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> gloo.Results:
    return gloo.run_cases("support.weight_ranks", WORLD, tmp_path_factory)


def assert_same(left, right, **tolerance) -> None:
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance)


@pytest.mark.parametrize("way", ["train", "accumulate"])
@every_schedule
def test_two_ranks_equal_one_that_accumulates(ranks, schedule: str, way: str) -> None:
    one, two = gloo.of_case(ranks, way, schedule)
    assert_same(one["parameters"], two["parameters"])
    if schedule == "noise":  # its random numbers are the ranks' own
        return
    if schedule == "recycled, a share" and way == "accumulate":
        return  # which micro-batches are kept goes by their numbers; see the test with keys
    model, adversary = train(SCHEDULES[schedule], DATA, per_round=SIZE)
    assert_same(one["parameters"], dict(model.named_parameters()), **CLOSE)
    ours = [e for entry in adversary.state_dict()["state"]["pending"] for e in entry]
    theirs = [e for rank in (one, two) for r in rank["state"]["state"]["pending"] for e in r]
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        if left["gradient"] is not None and adversary.centred:
            for a, b in zip(left["gradient"], right["gradient"], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", ["sequential", "recycled", "lookahead"])
@pytest.mark.parametrize("way", ["static", "bucket view", "overlap"])
def test_every_wrapper_trains_the_same(ranks, schedule: str, way: str) -> None:
    """A hook of its own and buckets that are the gradients: nothing kept is overwritten."""
    found = gloo.of_case(ranks, way, schedule)
    expected = gloo.of_case(ranks, "train", schedule)
    for left, right in zip(found, expected, strict=True):
        assert_same(left["parameters"], right["parameters"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["sequential", "recycled", "lookahead"])
def test_no_sync_that_leaves_out_the_forward_only_costs_time(ranks, schedule: str) -> None:
    """What sent peers' ascent gradients through an all-reduce."""
    found = gloo.of_case(ranks, "loose", schedule)
    expected = gloo.of_case(ranks, "accumulate", schedule)
    for left, right in zip(found, expected, strict=True):
        assert_same(left["parameters"], right["parameters"], rtol=1e-4, atol=1e-5)


def test_perturbations_are_each_rank_s_own(ranks) -> None:
    """Not averaged, and not the same."""
    one, two = gloo.of_case(ranks, "train", "recycled")
    left, right = (r["state"]["state"]["pending"][0][0]["gradient"][0] for r in (one, two))
    cosine = torch.cosine_similarity(left.flatten(), right.flatten(), dim=0)
    assert cosine < 0.5


@pytest.mark.parametrize("schedule", ["sequential", "recycled", "lookahead"])
def test_ranks_of_which_one_left_a_round_out_do_not_wait_for_each_other(ranks, schedule) -> None:
    one, two = gloo.of_case(ranks, "skip", schedule)
    assert_same(one["parameters"], two["parameters"])
    if schedule == "recycled":
        assert one["seen"] != two["seen"]


def test_own_parts_of_all_ranks_in_the_sequential_form(ranks) -> None:
    one, two = gloo.of_case(ranks, "centred", "sequential")
    assert_same(one["parameters"], two["parameters"])
    attack = WeightAttack(0.05, micro_batch=4, dtype=torch.float32, centred=True)
    model, _ = train(Sequential, DATA, attack)
    assert_same(one["parameters"], dict(model.named_parameters()), **CLOSE)


def test_a_wrapper_that_looks_for_unused_parameters(ranks) -> None:
    one, two = gloo.of_case(ranks, "unused")
    assert_same(one["parameters"], two["parameters"])
    model, _ = train(SCHEDULES["recycled"], DATA, per_round=SIZE, model=network(split=False))
    assert_same(one["parameters"], dict(model.named_parameters()), **CLOSE)


def test_what_cannot_be_is_said(ranks) -> None:
    [said, _] = gloo.of_case(ranks, "refusals")
    assert "fully_shard" in said["sharded"] and "DistributedDataParallel" in said["sharded"]
    assert "find_unused_parameters=True" in said["unused"]
    assert ATTACK.micro_batch == 4

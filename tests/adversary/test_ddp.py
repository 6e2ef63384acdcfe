"""DistributedDataParallel on two gloo ranks, against the same training in this process."""

import copy

import pytest
import torch

import conadv
from support import gloo
from support.loops import ATTACK, SCHEDULES, concatenated, cross_entropy, network, run, sgd
from support.ranks import (
    BY_ITSELF,
    FORWARDS,
    SIZE,
    STEPS,
    WORLD,
    WRAPPERS,
    global_batches,
    part_of,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> gloo.Results:
    """Every case's results, per rank."""
    return gloo.run_cases("support.ranks", WORLD, tmp_path_factory)


def assert_same_parameters(left, right, **tolerance):
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(
            left[key], right[key], msg=lambda m, k=key: f"{k}: {m}", **tolerance
        )


def two_replicas(schedule: str, micro: list[int] | None = None):
    """Data parallelism by hand: two models, the mean of their gradients, one update each."""
    models = [network() for _ in range(WORLD)]
    adversaries = [conadv.Adversary(m, ATTACK, SCHEDULES[schedule]()) for m in models]
    optimizers = [sgd(m) for m in models]
    sizes = micro or [SIZE]
    loops = []
    for rank, adversary in enumerate(adversaries):
        pieces = []
        for images, labels in part_of(rank):
            pieces += zip(images.split(sizes), labels.split(sizes), strict=True)
        loops.append(adversary.batches(pieces))
    for number, both in enumerate(zip(*loops, strict=True)):
        for adversary, (images, labels) in zip(adversaries, both, strict=True):
            adversary.loss(images, labels, cross_entropy, fraction=len(images) / SIZE).backward()
            adversary.collect()
        if (number + 1) % len(sizes):
            continue
        for pair in zip(*(m.parameters() for m in models), strict=True):
            mean = sum(p.grad for p in pair) / WORLD
            for parameter in pair:
                parameter.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return models, adversaries


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@every_schedule
def test_two_ranks_train_one_model(ranks, schedule: str, wrapper: str, forward: str) -> None:
    if wrapper == "finds unused" and forward == "separate":
        message = ranks[0]["refuse",]["message"]
        assert "find_unused_parameters=True" in message and "forward='joint'" in message
        return
    one, two = gloo.of_case(ranks, "train", schedule, wrapper, forward)
    assert_same_parameters(one["parameters"], two["parameters"])
    if schedule == "noise":  # its random numbers are the ranks' own
        return
    models, adversaries = two_replicas(schedule)
    expected = dict(models[0].named_parameters())
    assert_same_parameters(one["parameters"], expected, rtol=1e-5, atol=1e-6)
    assert two["compute"] == adversaries[1].compute


@pytest.mark.parametrize("schedule", ["vanilla", "sequential", "lookahead", "recycled"])
def test_two_ranks_equal_one_process_with_the_whole_batch(ranks, schedule: str) -> None:
    """Where one normalisation group is one rank's batch."""
    one, two = gloo.of_case(ranks, "auto", schedule)
    model = network(group_size=SIZE)
    adversary = conadv.Adversary(model, ATTACK, SCHEDULES[schedule]())
    run(adversary, sgd(model), global_batches())
    assert_same_parameters(one["parameters"], dict(model.named_parameters()), rtol=1e-4, atol=1e-5)
    if schedule == "recycled":
        copies, labels = concatenated([one["pending"], two["pending"]])
        left = adversary.state_dict()["state"]["pending"][0]
        assert torch.equal(labels, left["labels"])
        same = torch.isclose(copies, left["images"], rtol=1e-4, atol=1e-5).float().mean()
        assert same > 0.995  # the sign of a gradient that is zero but for rounding


@every_schedule
def test_auto_is_one_forward_where_forwards_communicate(ranks, schedule: str) -> None:
    auto = gloo.of_case(ranks, "auto", schedule)
    joint = gloo.of_case(ranks, "train", schedule, "default", "joint")
    for left, right in zip(auto, joint, strict=True):
        assert_same_parameters(left["parameters"], right["parameters"])


def test_ranks_draw_their_own_noise() -> None:
    """A copy of a rank's images with another rank's noise would be no new noise."""
    streams = conadv.adversary.round.Streams(0)
    mine = streams.generator(0, 1, torch.device("cpu"), of_rank=True)
    again = streams.generator(0, 1, torch.device("cpu"), of_rank=True)
    draws = torch.rand(8, generator=mine)
    assert torch.equal(draws, torch.rand(8, generator=again))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        other = streams.generator(0, 1, torch.device("cpu"), of_rank=True)
        shared = streams.generator(0, 1, torch.device("cpu"), of_rank=False)
    assert not torch.equal(draws, torch.rand(8, generator=other))
    assert torch.equal(draws, torch.rand(8, generator=shared))


@every_schedule
def test_no_sync_around_the_forward_accumulates(ranks, schedule: str) -> None:
    one, two = gloo.of_case(ranks, "accumulate", schedule)
    assert_same_parameters(one["parameters"], two["parameters"])
    if schedule == "noise":
        return
    models, _ = two_replicas(schedule, micro=[4, 2])
    expected = dict(models[0].named_parameters())
    assert_same_parameters(one["parameters"], expected, rtol=1e-5, atol=1e-6)


@every_schedule
def test_a_deferred_all_reduce_gives_the_same_to_the_last_bit(ranks, schedule: str) -> None:
    found = gloo.of_case(ranks, "overlap", schedule)
    expected = gloo.of_case(ranks, "train", schedule, "bucket view", "joint")
    for left, right in zip(found, expected, strict=True):
        assert_same_parameters(left["parameters"], right["parameters"])
        assert all(
            torch.equal(a, b) for a, b in zip(left["pending"], right["pending"], strict=True)
        )


@pytest.mark.parametrize("wrapper", BY_ITSELF)
@every_schedule
def test_rounds_are_collected_by_their_backward(ranks, schedule: str, wrapper: str) -> None:
    found = gloo.of_case(ranks, "by itself", schedule, wrapper, "loss")
    expected = gloo.of_case(ranks, "train", schedule, wrapper, "joint")
    for left, right in zip(found, expected, strict=True):
        assert_same_parameters(left["parameters"], right["parameters"])
        assert left["compute"] == right["compute"]
        assert all(
            torch.equal(a, b) for a, b in zip(left["pending"], right["pending"], strict=True)
        )


@pytest.mark.parametrize("wrapper", BY_ITSELF)
@every_schedule
def test_a_mixed_batch_trains_the_same_model(ranks, schedule: str, wrapper: str) -> None:
    one, two = gloo.of_case(ranks, "by itself", schedule, wrapper, "mix")
    assert_same_parameters(one["parameters"], two["parameters"])
    expected, _ = gloo.of_case(ranks, "train", schedule, wrapper, "joint")
    assert_same_parameters(one["parameters"], expected["parameters"], rtol=1e-4, atol=1e-5)


@every_schedule
def test_a_run_goes_on_from_the_state_of_all_ranks(ranks, schedule: str) -> None:
    for found in gloo.of_case(ranks, "gathered", schedule):
        assert_same_parameters(found["parameters"], found["unbroken"])
        assert found["same"]


@every_schedule
def test_ranks_of_which_one_has_no_copies_do_not_wait_for_each_other(ranks, schedule: str) -> None:
    one, two = gloo.of_case(ranks, "skip", schedule)
    assert_same_parameters(one["parameters"], two["parameters"])
    if schedule.startswith(("recycled", "lookahead")):
        assert one["had_copies"] != two["had_copies"]


def test_replicas_by_hand_differ_from_one_another_without_the_mean() -> None:
    """The oracle's own check: the two ranks' data are different."""
    assert not torch.equal(part_of(0)[0][0], part_of(1)[0][0])
    models, _ = two_replicas("recycled")
    before = copy.deepcopy(network())
    assert not torch.equal(models[0][0].weight, before[0].weight)
    assert len(global_batches()) == STEPS

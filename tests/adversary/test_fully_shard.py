"""Adversarial training under FSDP2 (`fully_shard`) on two gloo ranks."""

import pytest
import torch

from conadv.adversary.round import Streams
from support import fully_sharded as support
from support import gloo, text, text_ranks
from support.loops import SCHEDULES

pytestmark = pytest.mark.slow  # starting the ranks takes seconds
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return gloo.run_cases("support.fully_sharded", support.WORLD, tmp_path_factory)


@pytest.mark.parametrize("forward", ["joint", "separate"])
@every_schedule
def test_trains_as_ddp_does(ranks, schedule: str, forward: str) -> None:
    for found in gloo.of_case(ranks, "compared", schedule, forward):
        torch.testing.assert_close(found["fully_shard"], found["ddp"], rtol=1e-5, atol=1e-6)


@every_schedule
def test_micro_batches_without_communication(ranks, schedule: str) -> None:
    for found in gloo.of_case(ranks, "accumulate", schedule):
        torch.testing.assert_close(found["fully_shard"], found["ddp"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["alone", "lars"])
@pytest.mark.parametrize("schedule", support.EVERY_RANK_ALIKE)
def test_trains_as_one_process_with_the_whole_batch(ranks, schedule: str, optimizer: str) -> None:
    expected = support.train(support.global_batches(), schedule, None, lars=optimizer == "lars")
    for found in gloo.of_case(ranks, optimizer, schedule):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["loss", "mix"])
@every_schedule
def test_rounds_are_collected_by_their_backward(ranks, schedule: str, how: str) -> None:
    found = gloo.of_case(ranks, "by itself", schedule, how)
    expected = gloo.of_case(ranks, "compared", schedule, "joint")
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right["fully_shard"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", text_ranks.SCHEDULES)
def test_perturbed_embeddings_train_as_in_one_process(ranks, schedule: str) -> None:
    model = text.text()
    text.train(model, text_ranks.global_batches(), schedule)
    for found in gloo.of_case(ranks, "text", schedule):
        torch.testing.assert_close(found, model.state_dict(), rtol=1e-5, atol=1e-6)


def test_ranks_of_which_one_has_no_copies_do_not_wait_for_each_other(ranks) -> None:
    one, two = gloo.of_case(ranks, "skip")
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
    assert one["had copies"] == [False, True, True, True]
    assert two["had copies"] == [False, True, False, True]


def test_no_pass_runs_beside_another_on_a_gpu() -> None:
    """Two passes at once would gather and free the same weights."""
    device = torch.device("cuda")
    assert Streams(0, beside=False).side(device) is None


def test_an_attack_leaves_nothing_behind(ranks) -> None:
    for found in gloo.of_case(ranks, "attack"):
        assert found == {"changed": True, "sharded": True, "gradients": 0}

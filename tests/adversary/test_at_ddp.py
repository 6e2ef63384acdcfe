"""Perturbed embeddings in DistributedDataParallel on two gloo ranks, against one process."""

from typing import Any

import pytest
import torch

from support import gloo, text, text_ranks

pytestmark = pytest.mark.slow  # starting the ranks takes seconds


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> gloo.Results:
    return gloo.run_cases("support.text_ranks", text_ranks.WORLD, tmp_path_factory)


def in_one_process(schedule: str) -> dict[str, Any]:
    model = text.text()
    return text_ranks.result(model, text.train(model, text_ranks.global_batches(), schedule))


@pytest.mark.parametrize("how", text_ranks.HOW)
@pytest.mark.parametrize("schedule", text_ranks.SCHEDULES)
def test_two_ranks_equal_one_process_with_the_whole_batch(
    ranks: gloo.Results, schedule: str, how: str
) -> None:
    one, two = gloo.of_case(ranks, schedule, how)
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
    expected = in_one_process(schedule)
    torch.testing.assert_close(one["weights"], expected["weights"], rtol=1e-5, atol=1e-6)
    both = torch.cat([one["perturbation"], two["perturbation"]])
    assert torch.equal(both, expected["perturbation"])


def test_micro_batches_of_two_ranks_equal_one_process(ranks: gloo.Results) -> None:
    expected = in_one_process("sequential")["weights"]
    for found in gloo.of_case(ranks, "accumulate"):
        torch.testing.assert_close(found["weights"], expected, rtol=1e-5, atol=1e-6)

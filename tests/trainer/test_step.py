"""What ranks tell one another in a step."""

import math

import pytest
import torch

from conadv.adversary import Diagnostics
from conadv.trainer.step import Mean, StepMetrics, read_metrics

CPU = torch.device("cpu")


def of_round(loss: float, copies: float | None, fraction: float = 1.0) -> StepMetrics:
    """A micro-batch of two images, of which one is classified rightly."""
    seen = Diagnostics(
        clean_loss=torch.tensor(2 * loss),
        adversarial_loss=None if copies is None else torch.tensor(copies),
        outputs=torch.eye(2),
    )
    labels = torch.tensor([0, 0])
    return StepMetrics.of_round(torch.tensor(loss * fraction), fraction, labels, seen)


def test_all_ranks_together_are_a_mean_over_their_micro_batches() -> None:
    first = of_round(1.0, 5.0) + of_round(2.0, None)
    second = of_round(4.0, 7.0, fraction=0.5) + StepMetrics(compute=3.0, checkpoint=1.0)
    packed = torch.stack([first.pack(CPU), second.pack(CPU)])
    ranks, norm = read_metrics(packed, torch.tensor(0.25))
    total = sum(ranks, StepMetrics())
    assert norm == 0.25
    assert total.loss.value == pytest.approx((1 + 2 + 0.5 * 4) / 2.5)
    assert total.clean_loss.value == pytest.approx(2 * (1 + 2 + 0.5 * 4) / 2.5)
    assert total.adversarial_loss.value == pytest.approx((5 + 0.5 * 7) / 1.5)
    assert total.zero_share.value is None and total.agreement.value is None
    assert total.accuracy.value == 0.5
    assert (total.compute, total.stop, total.checkpoint) == (3.0, 0.0, 1.0)


def test_a_message_comes_back_field_by_field() -> None:
    numbers = iter(range(1, 100))
    sent = StepMetrics(
        *(Mean(float(next(numbers)), float(next(numbers))) for _ in range(6)),
        *(float(next(numbers)) for _ in range(4)),
    )
    packed = sent.pack(CPU)
    assert packed.tolist() == list(range(1, 17))
    assert StepMetrics.unpack(packed.tolist()) == sent


def test_the_rank_whose_loss_is_not_finite_is_known() -> None:
    packed = torch.stack([of_round(value, None).pack(CPU) for value in (1.0, math.nan)])
    ranks, _ = read_metrics(packed, torch.tensor(1.0))
    assert [math.isfinite(rank.loss.value or 0.0) for rank in ranks] == [True, False]


def test_soft_labels_count_by_their_larger_share() -> None:
    seen = Diagnostics(clean_loss=torch.tensor(1.0), outputs=torch.eye(2))
    labels = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    found = StepMetrics.of_round(torch.tensor(1.0), 1.0, labels, seen)
    assert found.accuracy.value == 0.5

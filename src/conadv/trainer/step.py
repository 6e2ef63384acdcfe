"""What a step is told and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from conadv.adversary import Adversary, Diagnostics
from conadv.weights import WeightAdversary

StepAdversary = Adversary | WeightAdversary
"""What a step trains with. A round is one micro-batch of this rank: `loss`, a backward pass, and
then `collect` or `skip`; or `idle`."""


@dataclass(frozen=True)
class Precision:
    """Where the passes of a step run, and in which precision."""

    device: torch.device
    autocast_dtype: torch.dtype | None = None
    """Precision of autocast; None computes in float32."""

    def autocast(self) -> torch.autocast:
        """The precision of forward passes. Casts of the weights are kept within one block."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales losses in float16; in any other precision it changes nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)


@dataclass(frozen=True)
class StepReport:
    """One line of ``metrics.jsonl``. Losses are means per image; ``accuracy`` is a fraction."""

    step: int
    """Steps done, this one included."""
    epoch: float
    loss: float
    clean_loss: float
    adversarial_loss: float | None
    accuracy: float
    """Accuracy on the clean images of this step, as augmented, in training mode."""
    learning_rate: float
    gradient_norm: float
    """Norm of the mean gradient, before variance reduction and clipping."""
    zero_share: float | None
    """Share of input-gradient values that were exactly zero."""
    images: int
    """Fresh images since the start."""
    compute: float
    """Compute since the start, in units of one forward and backward of one image."""
    agreement: float | None = None
    """Cosine of stale and fresh perturbations, if ``method.track_agreement`` asks for it."""
    skipped: bool = False


@dataclass(frozen=True)
class StepRequests:
    """What is to happen after a step, on all ranks together."""

    stop: bool = False
    checkpoint: bool = False
    hear: bool = False
    """Somebody has something to tell that rank 0 does not know."""


NO_REQUESTS = StepRequests()


@dataclass(frozen=True)
class Mean:
    """A weighted mean in parts that can be added; on the device until it is exchanged."""

    total: Tensor | float = 0.0
    weight: float = 0.0

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float | None:
        """The mean; None of nothing at all."""
        return float(self.total) / self.weight if self.weight else None


@dataclass(frozen=True)
class StepMetrics:
    """What one rank tells the others of a step, or with ``+`` what all of them have told."""

    loss: Mean = Mean()
    clean_loss: Mean = Mean()
    adversarial_loss: Mean = Mean()
    zero_share: Mean = Mean()
    agreement: Mean = Mean()
    accuracy: Mean = Mean()
    compute: float = 0.0
    stop: float = 0.0
    """Ranks that ask for it, likewise below."""
    checkpoint: float = 0.0
    hear: float = 0.0

    @classmethod
    def of_round(
        cls, loss: Tensor, fraction: float, labels: Tensor, seen: Diagnostics
    ) -> StepMetrics:
        """The metrics of one micro-batch; ``loss`` is already multiplied by ``fraction``."""
        if labels.is_floating_point():  # of a mixture, the class with the larger share
            labels = labels.argmax(dim=1)
        correct = (seen.outputs.argmax(dim=1) == labels).sum()

        def mean(value: Tensor | None) -> Mean:
            return Mean() if value is None else Mean(_wide(value * fraction), fraction)

        return cls(
            loss=Mean(_wide(loss), fraction),
            clean_loss=mean(seen.clean_loss),
            adversarial_loss=mean(seen.adversarial_loss),
            zero_share=mean(seen.zero_share),
            agreement=mean(seen.agreement),
            accuracy=Mean(_wide(correct), len(labels)),
        )

    def __add__(self, other: StepMetrics) -> StepMetrics:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return StepMetrics(*(a + b for a, b in pairs))

    def pack(self, device: torch.device) -> Tensor:
        """All numbers in one tensor, shape (n,), for the ranks to exchange."""
        parts = [vars(v).values() if isinstance(v, Mean) else (v,) for v in vars(self).values()]
        zero = torch.zeros((), dtype=_widest(device), device=device)
        return torch.stack([zero + number for numbers in parts for number in numbers])

    @classmethod
    def unpack(cls, numbers: Sequence[float]) -> StepMetrics:
        """The metrics that were packed as these numbers."""
        rest = iter(numbers)
        values: list[Any] = [
            Mean(next(rest), next(rest)) if isinstance(field.default, Mean) else next(rest)
            for field in fields(cls)
        ]
        return cls(*values)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(_widest(value.device))


def read_metrics(packed: Tensor, gradient_norm: Tensor) -> tuple[list[StepMetrics], float]:
    """Bring the packed metrics of each rank, shape (ranks, n), and a norm to the host.

    In one small copy: it is here that a step waits for the device.
    """
    flat = torch.cat([packed.flatten(), gradient_norm.to(packed.dtype).view(1)]).tolist()
    width = packed.shape[1]
    ranks = [StepMetrics.unpack(flat[i : i + width]) for i in range(0, len(flat) - 1, width)]
    return ranks, flat[-1]


def nonfinite_message(
    report: StepReport, samples: Sequence[int], skips_in_a_row: int, bad_ranks: Sequence[int]
) -> str:
    """Why a step is void, and what to do about it; ``bad_ranks`` are named if there are any."""
    shown = ", ".join(str(i) for i in samples[:32])
    more = f" and {len(samples) - 32} more" if len(samples) > 32 else ""
    again = ""
    if skips_in_a_row > 1:
        again = f" {skips_in_a_row} steps in a row were void, so skipping does not help."
    where = f" (rank {', '.join(str(r) for r in bad_ranks[:8])})" if bad_ranks else ""
    return (
        f"step {report.step}: the loss is {report.loss:g}{where} and the gradient's norm "
        f"{report.gradient_norm:g} at learning rate {report.learning_rate:g}.{again} "
        "The weights were not updated. "
        "Lower optimizer.lr, lengthen lr_schedule.warmup_epochs, or set train.nonfinite=skip "
        f"to leave such a step out. Sample ids of the batch: {shown}{more}."
    )

"""What a step is told and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Numerics:
    """Precision of the passes, and what to do with gradients."""

    device: torch.device
    autocast_dtype: torch.dtype | None = None
    """None computes in float32."""
    clip_grad_norm: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    ema_decay: float | None = None

    def autocast(self) -> torch.autocast:
        """The precision of forward passes. Casts of the weights are kept within one block."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled)


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
    """Of the clean images of this step, as augmented, in training mode."""
    learning_rate: float
    gradient_norm: float
    zero_share: float | None
    """Share of input-gradient values that were exactly zero."""
    images: int
    """Fresh images since the start."""
    compute: float
    """Since the start, in units of one forward and backward of one image."""
    agreement: float | None = None
    """Cosine of stale and fresh perturbations, if ``method.track_agreement`` asks for it."""
    skipped: bool = False


@dataclass(frozen=True)
class Wishes:
    """What is to happen after a step, on all ranks together."""

    stop: bool = False
    checkpoint: bool = False


NO_WISHES = Wishes()


def nonfinite_message(
    report: StepReport, samples: Sequence[int], skips_in_a_row: int, bad_ranks: Sequence[int]
) -> str:
    """Why a step is void, and what to do about it.

    Args:
        report: Of the step.
        samples: Its images, by their number in the data set.
        skips_in_a_row: Void steps up to now, this one included.
        bad_ranks: Processes whose own loss is not finite, if there are several processes.
    """
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

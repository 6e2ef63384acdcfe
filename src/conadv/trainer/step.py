"""What a step is told and what it tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from conadv.adversary import Diagnostics
from conadv.optim.sharded import is_dtensor


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


def finish_gradients(
    parameters: Sequence[nn.Parameter],
    divisor: float,
    clip: float | None,
    change: Callable[[], None] = lambda: None,
) -> Tensor:
    """Turn a sum of micro-batch means into the mean over the step, and measure and clip it.

    Each micro-batch's loss is scaled as a mean over that micro-batch, not over the whole step: in
    fp16 the gradient of one image in a mean over 98,304 would underflow to zero. The division
    happens here, once, in the gradients' own precision.

    Args:
        parameters: Those the optimizer updates; ones without a gradient are left out.
        divisor: How many full micro-batches the step stands for.
        clip: Largest allowed norm, or None.
        change: Called with the mean gradients in place, to scale them down; before clipping.

    Returns:
        Norm of the whole gradient before it is changed or clipped, 0-dim.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if divisor != 1.0:
        torch._foreach_mul_(gradients, 1.0 / divisor)
    norm = nn.utils.get_total_norm(gradients)
    change()
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm.full_tensor() if is_dtensor(norm) else norm


class BufferGuard:
    """Remembers the buffers of a model, so that a void step cannot leave NaN statistics behind.

    Args:
        model: Any model; its buffers must keep their identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._saved = [b.detach().clone() for b in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the buffers as they are now."""
        _copy(self._saved, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was remembered last."""
        _copy(self._buffers, self._saved)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


NAMES = ("loss", "clean_loss", "adversarial_loss", "zero_share", "agreement", "correct")
"""What is summed, in the order in which ranks exchange it."""


@dataclass(frozen=True)
class Reading:
    """A step's numbers on the host."""

    loss: float
    clean_loss: float
    adversarial_loss: float | None
    zero_share: float | None
    agreement: float | None
    correct: float
    gradient_norm: float
    extra: tuple[float, ...]
    """Sums over the ranks of what was packed besides."""
    bad_ranks: tuple[int, ...]
    """Those whose own loss is NaN or infinite."""

    @property
    def loss_is_finite(self) -> bool:
        """Neither NaN nor infinite."""
        return abs(self.loss) < float("inf")

    @property
    def norm_is_finite(self) -> bool:
        """Neither NaN nor infinite."""
        return abs(self.gradient_norm) < float("inf")


class Tally:
    """Sums over the micro-batches of a step, kept on the device and read once."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, float] = {}

    def add(self, loss: Tensor, fraction: float, labels: Tensor, seen: Diagnostics) -> None:
        """Take in one micro-batch; ``loss`` is already multiplied by ``fraction``."""
        self._add("loss", loss.detach(), 1.0, fraction)
        self._add("clean_loss", seen.clean_loss, fraction, fraction)
        self._add("adversarial_loss", seen.adversarial_loss, fraction, fraction)
        self._add("zero_share", seen.zero_share, fraction, fraction)
        self._add("agreement", seen.agreement, fraction, fraction)
        if labels.is_floating_point():  # of a mixture, the class with the larger share
            labels = labels.argmax(dim=1)
        self._add("correct", (seen.outputs.argmax(dim=1) == labels).sum(), 1.0, 0.0)

    def _add(self, name: str, value: Tensor | None, factor: float, weight: float) -> None:
        if value is None:
            return
        self._values.setdefault(name, []).append(value * factor if factor != 1.0 else value)
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def pack(self, extra: Sequence[float], device: torch.device) -> Tensor:
        """The sums, their weights and further numbers, to be exchanged.

        Returns:
            Shape (2 * len(NAMES) + len(extra),).
        """
        dtype = torch.float32 if device.type == "mps" else torch.float64
        zero = torch.zeros((), dtype=dtype, device=device)
        sums = [torch.stack([zero, *(v.to(dtype) for v in self._values.get(n, []))]) for n in NAMES]
        weights = [self._weights.get(name, 0.0) for name in NAMES]
        numbers = torch.tensor([*weights, *extra], dtype=dtype, device=device)
        return torch.cat([torch.stack([s.sum() for s in sums]), numbers])


def read(packed: Tensor, gradient_norm: Tensor) -> Reading:
    """The numbers of all ranks together; one small copy to the host.

    Args:
        packed: Of each rank (see `Tally.pack`), shape (ranks, n).
        gradient_norm: 0-dim.
    """
    together = torch.cat([packed.flatten(), gradient_norm.to(packed.dtype).view(1)]).tolist()
    norm = together.pop()
    width = packed.shape[1]
    ranks = [together[i : i + width] for i in range(0, len(together), width)]
    totals = [sum(column) for column in zip(*ranks, strict=True)]
    count = len(NAMES)
    weights = dict(zip(NAMES, totals[count : 2 * count], strict=True))
    means = {
        name: total / weights[name] if weights[name] else None
        for name, total in zip(NAMES, totals[:count], strict=True)
    }
    return Reading(
        loss=means["loss"] or 0.0,
        clean_loss=means["clean_loss"] or 0.0,
        adversarial_loss=means["adversarial_loss"],
        zero_share=means["zero_share"],
        agreement=means["agreement"],
        correct=totals[NAMES.index("correct")],
        gradient_norm=norm,
        extra=tuple(totals[2 * count :]),
        bad_ranks=tuple(i for i, rank in enumerate(ranks) if not math.isfinite(rank[0])),
    )

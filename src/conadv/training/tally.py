"""The numbers of one step: summed on the device, joined over ranks, read by the host once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conadv.adversary import Diagnostics

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

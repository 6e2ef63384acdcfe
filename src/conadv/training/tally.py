"""The numbers of one step: summed on the device, read by the host once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conadv.adversary import Diagnostics


@dataclass(frozen=True)
class Reading:
    """A step's numbers on the host."""

    loss: float
    clean_loss: float
    adversarial_loss: float | None
    zero_share: float | None
    correct: float
    gradient_norm: float

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
        self._add("correct", (seen.outputs.argmax(dim=1) == labels).sum(), 1.0, 0.0)

    def _add(self, name: str, value: Tensor | None, factor: float, weight: float) -> None:
        if value is None:
            return
        self._values.setdefault(name, []).append(value * factor if factor != 1.0 else value)
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self, gradient_norm: Tensor) -> Reading:
        """One small copy to the host."""
        names = list(self._values)
        sums = [torch.stack(self._values[name]).sum().float() for name in names]
        numbers = torch.stack([*sums, gradient_norm.float()]).tolist()
        norm = numbers.pop()
        means = {
            name: number / (self._weights[name] or 1.0)
            for name, number in zip(names, numbers, strict=True)
        }
        return Reading(
            loss=means["loss"],
            clean_loss=means["clean_loss"],
            adversarial_loss=means.get("adversarial_loss"),
            zero_share=means.get("zero_share"),
            correct=means["correct"],
            gradient_norm=norm,
        )

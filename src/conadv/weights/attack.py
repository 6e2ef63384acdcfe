"""What one perturbation of the weights is: its radius, which weights, whose gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from conadv.schedules.base import Scheduled, value_at

Radius = Literal["layer", "global"]
Choice = Literal["matrices", "norm", "all"] | Callable[[str, Tensor], bool]


@dataclass(frozen=True)
class WeightAttack:
    r"""One step uphill in the weights, for each micro-batch k its own.

    With c_k the direction of the micro-batch, w_l the weights of layer l:

        e_kl = rho * |w_l| * c_kl / |c_kl|       radius="layer"
        e_k  = rho * c_k / |c_k|                 radius="global", SAM's own

    The layer's radius is relative to its norm, as LARS has its rate; a layer is one parameter.

    Args:
        rho: the radius, at least 0, or a function of progress.
        radius: ``"layer"`` or ``"global"``.
        centred: whether c_k is the micro-batch's *own part* of its gradient g_k: g_k minus the
            mean of g over all micro-batches of the step, on all ranks. One step later the own
            part still points uphill, what all share may point down. None: where the gradient is
            old, that is for ``recycled``, ``lookahead`` and ``slot``.
        parameters: which weights move: ``"matrices"``, those of two or more dimensions;
            ``"norm"``, scale and shift of normalisation layers; ``"all"``; or a predicate
            ``(name, parameter) -> bool``.
        micro_batch: images of a micro-batch: what `WeightAdversary.loss` is given is cut into
            micro-batches of so many, each with its own perturbation, and normalised by itself.
            None: one call is one micro-batch.
        branch: normalisation branch for passes at moved weights, such as ``"adversarial"``;
            None: that of the images.
        dtype: what is kept of gradients from round to round: bfloat16 or float32.

    Raises:
        ValueError: an argument outside these.
    """

    rho: Scheduled = 0.01
    radius: Radius = "layer"
    centred: bool | None = None
    parameters: Choice = "matrices"
    micro_batch: int | None = None
    branch: str | None = None
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        for progress in (0.0, 0.5, 1.0):
            self.rho_at(progress)
        if self.radius not in ("layer", "global"):
            raise ValueError(f"radius={self.radius!r}: allowed are 'layer' and 'global'.")
        if self.centred not in (None, True, False):
            raise ValueError(f"centred={self.centred!r}: allowed are True, False and None.")
        if not callable(self.parameters) and self.parameters not in ("matrices", "norm", "all"):
            raise ValueError(
                f"parameters={self.parameters!r}: allowed are 'matrices', 'norm', 'all' and a "
                "function (name, parameter) -> bool."
            )
        m = self.micro_batch
        if m is not None and (isinstance(m, bool) or not isinstance(m, int) or m < 1):
            raise ValueError(f"micro_batch={m!r}: give a number of images, from 1, or None.")
        if self.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"dtype={self.dtype}: gradients are kept as torch.bfloat16 or torch.float32; "
                "others lose small values or cost more than they tell."
            )

    def rho_at(self, progress: float) -> float:
        """The radius at this point of training."""
        return value_at(self.rho, progress, "rho", high=float("inf"))

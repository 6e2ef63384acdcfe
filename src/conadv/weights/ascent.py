"""The gradient of a micro-batch at the present weights, in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conadv._tree import map_tensors
from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.attack.fp16 import is_half, power_of_two
from conadv.branches.wrappers import unwrap


@dataclass
class Ascent:
    """What such a pass gave."""

    loss: Tensor
    """Detached, 0-dim."""
    outputs: Any
    """Detached."""
    gradients: dict[str, Tensor | None]
    """By the names of the weights that were asked for."""


def silent(model: nn.Module) -> Callable[[Tensor], Any]:
    """The model without DistributedDataParallel, compiled if it is: its passes communicate nothing.

    The reducer must not hear of a pass whose gradients it will not see.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    bare, compiler = unwrap(model)
    wrapped = getattr(model, "_orig_mod", None)
    if compiler is not None and isinstance(wrapped, nn.parallel.DistributedDataParallel):
        return compiler(bare.__call__)  # type: ignore[no-any-return]
    return model


def gradients_of(
    outputs: Any, images: Tensor, labels: Any, criterion: Criterion, weights: Mapping[str, Tensor]
) -> Ascent:
    """Loss and gradients with respect to `weights`, which the outputs were computed from.

    In fp16 the gradient at the outputs is lifted by a power of two on its way down, and the
    result divided by it: the gradient of a mean over many images would be zero.
    """
    floating: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() and tensor.requires_grad):
            return tensor
        floating.append(tensor)
        leaves.append(tensor.detach().float().requires_grad_())
        return leaves[-1]

    leaves: list[Tensor] = []
    lifted = map_tensors(leaf, outputs)
    asked = list(weights.values())
    if is_half(images, *floating):
        loss = loss_of(criterion(lifted, labels))
        above = torch.autograd.grad(loss, leaves)
        factor = power_of_two(torch.stack([g.abs().amax() for g in above]).amax())
        down = [(g * factor).to(t.dtype) for g, t in zip(above, floating, strict=True)]
        found = torch.autograd.grad(floating, asked, down, allow_unused=True)
        found = tuple(None if g is None else g.float() / factor for g in found)
    else:
        loss = loss_of(criterion(outputs, labels))
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    plain = map_tensors(lambda tensor: tensor.detach(), outputs)
    gradients: dict[str, Tensor | None] = dict(zip(weights, found, strict=True))
    return Ascent(loss.detach(), plain, gradients)

"""A model and what it takes to run it at other weights, or at its own for a gradient alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conadv._tree import first_tensor, map_tensors
from conadv.adversary.mixing import find_distributed
from conadv.adversary.round import Streams
from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.attack.fp16 import is_half, power_of_two
from conadv.branches import route
from conadv.branches.in_step import InStep
from conadv.branches.wrappers import unwrap
from conadv.weights.attack import WeightAttack
from conadv.weights.space import WeightSpace
from conadv.weights.substitution import Substitution, refuse_reentrant

LATEST = 2**63 - 1
"""Number of a node in the backward graph that is run as soon as its gradient is there."""


@dataclass
class Ascent:
    """What a pass for a gradient alone gave."""

    loss: Tensor
    """Detached, 0-dim."""
    outputs: Any
    """Detached."""
    gradients: dict[str, Tensor | None]
    """Gradients by the names of the weights that were asked for."""


class Passes:
    """A model and what it takes to run it at other weights.

    Args:
        model: with its wrappers.
        attack: what one perturbation is.
        clean_branch: normalisation branch of passes at the weights themselves.
        seed: of the random streams.
    """

    def __init__(
        self, model: nn.Module, attack: WeightAttack, clean_branch: str, seed: int
    ) -> None:
        self.model = model
        self.bare = unwrap(model)[0]
        self.attack = attack
        self.clean_branch = clean_branch
        self.branch = attack.branch or clean_branch
        """Branch of passes at moved weights."""
        self.streams = Streams(seed)
        wrapper = find_distributed(model)
        self.group = None if wrapper is None else wrapper.process_group
        """The ranks that share a step."""
        self.in_step = InStep(self.bare, self.group)
        self.substitution = Substitution(model)
        self.space = WeightSpace(model, attack.parameters)
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.checked = False
        """Whether a pass has shown that the model can be run again."""
        self._silent = _silent(model)

    def aliases(self) -> dict[str, Tensor]:
        """The weights themselves, as tensors whose gradients are of one pass alone."""
        return self._named([p.view_as(p) for p in self.space.parameters])

    def moved(self, direction: Tensor, progress: float) -> dict[str, Tensor]:
        """The weights w + e."""
        step = self.space.step(direction, self.attack.rho_at(progress), self.attack.radius)
        # One by one: _foreach_add has one node for all, which keeps e until the backward and hands
        # on no gradient before it has the last one.
        return self._named([p + e for p, e in zip(self.space.parameters, step, strict=True)])

    def _named(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        for tensor in tensors:
            node: Any = tensor.grad_fn
            # A backward pass does last what was made first: these, when it is over, and with them
            # all parameters' gradients, too late for an all-reduce beside it.
            if node is not None and hasattr(node, "_set_sequence_nr"):
                node._set_sequence_nr(LATEST)
        return dict(zip(self.space.names, tensors, strict=True))

    def ascend(
        self, images: Tensor, labels: Any, criterion: Criterion, names: list[str], *, frozen: bool
    ) -> Ascent:
        """The gradients of a micro-batch with respect to the weights of these names."""
        weights = {name: self.trainable[name].view_as(self.trainable[name]) for name in names}
        layout = [(self.clean_branch, len(images))]
        with torch.enable_grad(), route(self.bare, layout):
            outputs = self.substitution.run(weights, lambda: self._silent(images), frozen=frozen)
        if not self.checked:
            refuse_reentrant(first_tensor(outputs))
        return _gradients_of(outputs, images, labels, criterion, weights)


def _silent(model: nn.Module) -> Callable[[Tensor], Any]:
    """The model without DistributedDataParallel, compiled if it is.

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


def _gradients_of(
    outputs: Any, images: Tensor, labels: Any, criterion: Criterion, weights: Mapping[str, Tensor]
) -> Ascent:
    """Loss and gradients with respect to `weights`, which the outputs were computed from.

    In fp16 the gradient at the outputs is lifted by a power of two on its way down, and the
    result divided by it: the gradient of a mean over many images would be zero.
    """
    floating: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() and tensor.requires_grad):
            return tensor
        floating.append(tensor)
        leaves.append(tensor.detach().float().requires_grad_())
        return leaves[-1]

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
    return Ascent(loss.detach(), plain, dict(zip(weights, found, strict=True)))

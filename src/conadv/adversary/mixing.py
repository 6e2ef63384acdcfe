"""One mixed batch: parts of several branches, one loss."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from conadv._tree import rows
from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.attack.layer import Beside, Layer, together
from conadv.branches import route
from conadv.branches.routing import Router
from conadv.branches.split_norm import SplitNorm
from conadv.branches.structure import modules_of, modules_of_kind


@dataclass
class Part:
    """The images of one kind in a round."""

    branch: str
    images: Tensor
    labels: Any
    adversarial: bool
    wants_gradient: bool = False
    leaf: Tensor | None = None
    offset: int = 0
    given: Beside | None = None
    """What goes with a perturbation at a layer: its inputs, padded as `images` and `labels` are."""
    length: int | None = None
    """Before padding."""

    def gradient(self) -> Tensor | None:
        """The gradient that the backward left for this part's images, or None."""
        if self.leaf is None or self.leaf.grad is None:
            return None
        stop = self.offset + len(self.images)
        found: Tensor = rows(self.leaf.grad, self.offset, stop, len(self.leaf))
        return found if self.length is None else found[:, : self.length]


def padded_together(parts: Sequence[Part]) -> list[Part]:
    """The parts, their labels freed of what goes with them, all of the longest one's length.

    Raises:
        ValueError: no mask says what was added, or shapes differ in more than the length.
    """
    longest = max(part.images.shape[1] for part in parts)
    found = []
    for part in parts:
        own = part.images.shape[1]
        given = Beside(*part.labels).padded(own, longest)
        images = part.images
        if own < longest:
            more = images.new_zeros(len(images), longest - own, *images.shape[2:])
            images = torch.cat([images, more], dim=1)
        found.append(replace(part, images=images, labels=given.labels, given=given, length=own))
    return found


def beside_all(parts: Sequence[Part]) -> Beside:
    """Inputs and mask of all parts, one below the other."""
    return together([part.given for part in parts if part.given is not None])


def forward_at(
    model: nn.Module, parts: Sequence[Part], layer: Layer
) -> tuple[list[Any], Tensor, Tensor | None]:
    """One forward over all parts, perturbed at the layer.

    Returns:
        each part's rows of the outputs; the perturbations and the mask of all rows.
    """
    mixed, layout = concatenated(parts)
    if any(part.wants_gradient for part in parts):
        mixed.requires_grad_()
    given = beside_all(parts)
    with layer.adding(mixed, given.mask), route(model, layout):
        outputs = layer.call(model, given)
    return _by_part(outputs, parts, len(mixed)), mixed, given.mask


def _by_part(outputs: Any, parts: Sequence[Part], total: int) -> list[Any]:
    return [rows(outputs, part.offset, part.offset + len(part.images), total) for part in parts]


def weights_of(parts: Sequence[Part], adversarial_weight: float | None) -> list[float]:
    """Weight of each part's mean loss; they sum to one.

    None gives every image the same weight. Otherwise the adversarial parts share
    `adversarial_weight` and the others the rest, by their number of images. A round without
    copies is an ordinary mean.
    """
    total = sum(len(part.images) for part in parts)
    copies = sum(len(part.images) for part in parts if part.adversarial)
    if adversarial_weight is None or copies in (0, total):
        return [len(part.images) / total for part in parts]
    return [
        len(part.images) / copies * adversarial_weight
        if part.adversarial
        else len(part.images) / (total - copies) * (1 - adversarial_weight)
        for part in parts
    ]


def as_sum(weights: Sequence[float]) -> list[float]:
    """The weights of a sum in which the mean loss of the first part, the images given, is whole.

    Raises:
        ValueError: it has no weight.
    """
    if weights[0] == 0:
        raise ValueError(
            "loss='sum' adds to the loss of the images given, which has no weight here: give the "
            "schedule a weight below 1, or use loss='mean'."
        )
    return [weight / weights[0] for weight in weights]


def concatenated(parts: Sequence[Part]) -> tuple[Tensor, list[tuple[str, int]]]:
    """The images of all parts in one tensor, detached, and its layout.

    The parts that want a gradient look for it at that tensor. Neighbouring parts of one branch
    (cohorts of copies) are normalised together.
    """
    images = [part.images.detach() for part in parts]
    for other in images[1:]:
        if other.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"Images of shape {tuple(images[0].shape[1:])} and, as copies of an earlier batch "
                f"or another view, {tuple(other.shape[1:])} cannot be one batch: keep one size, "
                "or use Adversary(..., forward='separate'), one forward per branch."
            )
    mixed = images[0] if len(images) == 1 else torch.cat(images)
    start = 0
    for part in parts:
        part.offset = start
        start += len(part.images)
        if part.wants_gradient:
            part.leaf = mixed
    layout = [
        (branch, sum(len(part.images) for part in group))
        for branch, group in groupby(parts, key=lambda part: part.branch)
    ]
    return mixed, layout


def forward_joint(model: nn.Module, parts: Sequence[Part]) -> list[Any]:
    """One forward over the concatenated parts; returns each part's rows of the outputs."""
    mixed, layout = concatenated(parts)
    if any(part.wants_gradient for part in parts):
        mixed.requires_grad_()
    with route(model, layout):
        outputs = model(mixed)
    return _by_part(outputs, parts, len(mixed))


def forward_separate(
    model: nn.Module, parts: Sequence[Part], routers: Sequence[Router]
) -> list[Any]:
    """One forward per branch: no concatenation of activations inside every split layer."""
    first, *others = [list(group) for _, group in groupby(parts, key=lambda part: part.branch)]
    results = forward_joint(model, first)
    with buffers_as_they_are(model):
        for group in others:
            results += forward_joint(model, group)
    for router in routers:
        router.ambiguous = bool(others)
    return results


@contextmanager
def buffers_as_they_are(model: nn.Module) -> Iterator[None]:
    """DistributedDataParallel does not copy rank 0's buffers once more within a round.

    Every forward does so by itself: twice the communication, and up to torch 2.12 or so it writes
    to running statistics that the forward before has saved for its backward.
    """
    wrapper = find_distributed(model)
    if wrapper is None:
        yield
        return
    before, wrapper.broadcast_buffers = wrapper.broadcast_buffers, False
    try:
        yield
    finally:
        wrapper.broadcast_buffers = before


def mean_loss(
    parts: Sequence[Part],
    outputs: Sequence[Any],
    weights: Sequence[float],
    criterion: Criterion,
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum of the parts' losses, and each part's own loss, detached.

    Raises:
        ValueError: the criterion does not return one number per part.
    """
    losses = []
    for part, output in zip(parts, outputs, strict=True):
        losses.append(loss_of(criterion(output, part.labels)))
    total = losses[0] * weights[0]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        total = total + loss * weight
    return total, [loss.detach() for loss in losses]


# -- what the wrapper and the layers allow ------------------------------------------------------


def find_distributed(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel wrapper around the model or within another one, or None."""
    return next(iter(modules_of_kind(model, nn.parallel.DistributedDataParallel)), None)


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether the model or a part of it is in FSDP2's `fully_shard`."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # importing it only to ask would take a second
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in modules_of(model))


def finds_unused(model: nn.Module) -> bool:
    """Whether DistributedDataParallel looks for unused parameters after each forward."""
    wrapper = find_distributed(model)
    return wrapper is not None and wrapper.find_unused_parameters and not wrapper.static_graph


def why_joint(model: nn.Module) -> str | None:
    """The reason why one forward per branch is impossible, or None."""
    if any(layer.statistics != "separate" for layer in modules_of_kind(model, SplitNorm)):
        return "cannot give statistics over the mixed batch"
    if finds_unused(model):
        return "is two forward passes, of which DDP's find_unused_parameters=True sees only one"
    return None


# -- branches without images -------------------------------------------------------------------


def parameters_without_images(model: nn.Module, present: Collection[str]) -> list[nn.Parameter]:
    """Trainable parameters of the branches other than those that this round goes through."""
    absent = [
        parameter
        for layer in modules_of_kind(model, SplitNorm)
        if layer.statistics != "shared"
        for branches in (layer.norms, layer.affines)
        for name, branch in branches._modules.items()
        if branch is not None and name not in present
        for module in modules_of(branch)  # remembered, as parameters() is not
        for parameter in module._parameters.values()
        if parameter is not None and parameter.requires_grad
    ]
    return list({id(parameter): parameter for parameter in absent}.values())


def with_zero_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """`loss`, whose backward also gives the parameters a gradient of zero.

    DistributedDataParallel waits for the gradient of every parameter, those of a branch that has
    no images yet too; and one process shall train as many do, also where an optimizer tells a
    gradient of zero from none (decay, momentum, step counts).
    """
    if not parameters or not loss.requires_grad:
        return loss
    return _ZeroGradients.apply(loss, *parameters)  # type: ignore[no-any-return]


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters  # leaves: nothing that a graph would keep alive
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(torch.zeros_like(parameter) for parameter in ctx.parameters))

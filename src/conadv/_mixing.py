"""One mixed batch: parts of several branches, one loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conadv._nested import rows
from conadv._split_norm import Router
from conadv.attack import Criterion
from conadv.branches import route


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

    def gradient(self) -> Tensor | None:
        """The gradient that the backward left for this part's images, or None."""
        if self.leaf is None or self.leaf.grad is None:
            return None
        return self.leaf.grad[self.offset : self.offset + len(self.images)]


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


def forward_joint(model: nn.Module, parts: Sequence[Part]) -> list[Any]:
    """One forward over the concatenated parts; returns each part's rows of the outputs."""
    wanted = any(part.wants_gradient for part in parts)
    if len(parts) == 1:
        mixed = parts[0].images.detach()
    else:
        mixed = torch.cat([part.images.detach() for part in parts])
    if wanted:
        mixed.requires_grad_()
    total, start = len(mixed), 0
    with route(model, [(part.branch, len(part.images)) for part in parts]):
        outputs = model(mixed)
    results = []
    for part in parts:
        stop = start + len(part.images)
        results.append(rows(outputs, start, stop, total))
        if part.wants_gradient:
            part.leaf, part.offset = mixed, start
        start = stop
    return results


def forward_separate(model: nn.Module, parts: Sequence[Part], router: Router | None) -> list[Any]:
    """One forward per part: no concatenation of activations inside every split layer."""
    results = []
    for part in parts:
        images = part.images.detach()
        if part.wants_gradient:
            images.requires_grad_()
            part.leaf, part.offset = images, 0
        with route(model, [(part.branch, len(images))]):
            results.append(model(images))
    if router is not None:
        router.ambiguous = len(parts) > 1
    return results


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
        loss = criterion(output, part.labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"The criterion returned {shape}: it must return one number, the mean over the "
                "images it is given (reduction='mean')."
            )
        losses.append(loss.reshape(()))
    total = losses[0] * weights[0]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        total = total + loss * weight
    return total, [loss.detach() for loss in losses]


def check_labels(labels: Any, outputs: Any) -> None:
    """Raise ValueError for integer labels outside the outputs' classes.

    On a GPU such a label is a device-side assert that kills the process; one look at the first
    batch is cheap.
    """
    if not isinstance(labels, Tensor) or not isinstance(outputs, Tensor):
        return
    if labels.is_floating_point() or labels.ndim != 1 or outputs.ndim != 2:
        return
    classes = outputs.shape[1]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"A label is {wrong}, but the model has {classes} outputs: labels run from 0 to "
            f"{classes - 1}. Check the labels' offset, or the model's number of classes."
        )

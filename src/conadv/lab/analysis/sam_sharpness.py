"""SAM-sharpness: how much the loss rises one ascent step of a given length away."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from conadv.attack import Criterion
from conadv.lab.analysis.passes import (
    Batches,
    Progress,
    check_repeatable,
    displaced,
    evaluated,
    mean_gradient,
    score,
    silent,
)

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class SamPoint:
    """The loss at one radius."""

    radius: float
    loss: float
    sharpness: float
    """That loss minus the loss at the weights themselves."""


@dataclass(frozen=True)
class SamCurve:
    """SAM-sharpness at several radii."""

    loss: float
    """Loss at the weights themselves."""
    gradient_norm: float
    points: tuple[SamPoint, ...]
    images: int


def sam_sharpness(
    model: nn.Module,
    batches: Batches,
    criterion: Criterion = cross_entropy,
    *,
    radii: Sequence[float] = RADII,
    branch: str | None = None,
    progress: Progress = silent,
) -> SamCurve:
    """L(w + rho g / |g|) - L(w), with g the gradient at w (Foret et al., 2021, equation 2).

    That is the first-order solution of max L(w + e) over |e| <= rho. The gradient is that of all
    the images given, over all weights, in eval mode: in SAM's own training it is a mini-batch's.
    Near a minimum, rho * (|g| + rho/2 * u'Hu) with u = g / |g|.

    Args:
        model: Left as it was.
        batches: (images, labels) on the model's device, gone through once for each radius.
        criterion: ``criterion(outputs, labels)``, the mean over the images it is given.
        radii: L2 distances in weight space.
        branch: Normalisation branch; None takes the model's first.
        progress: Told of each radius.

    Raises:
        ValueError: No images, no radius, one that is negative or not finite, no such branch, or
            batches that is an iterator.
    """
    check_repeatable(batches)
    if not radii or not all(math.isfinite(radius) and radius >= 0 for radius in radii):
        raise ValueError(f"radii={tuple(radii)}: give at least one finite number, 0 or more.")
    frozen = evaluated(model, branch)
    _, gradient = mean_gradient(frozen, batches, criterion)
    norm = float(torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt())
    base = score(frozen, batches, criterion)
    points = []
    for done, radius in enumerate(radii, 1):
        with displaced(frozen, [gradient], [radius / norm if norm else 0.0]):
            loss = score(frozen, batches, criterion).loss
        points.append(SamPoint(radius, loss, loss - base.loss))
        progress(done, len(radii))
    return SamCurve(base.loss, norm, tuple(points), base.images)

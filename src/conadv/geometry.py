"""Norm balls: the steepest direction, the projection, a random point.

Everything here is in the units in which the perturbation is bounded and knows nothing of pixels,
so that the same balls serve images, embeddings and weights. The first dimension counts the
samples: each sample has a ball of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, ..., 1) so that it broadcasts against `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def l2_norms(delta: Tensor) -> Tensor:
    """Euclidean norm of each sample, shape (N, 1, ..., 1).

    Each sample is divided by its largest entry first: squares of float32 gradients under 1e-19
    underflow, and those of a mean over 98,304 images are not far from it.
    """
    flat = delta.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    return _per_sample((flat / safe).norm(dim=1) * largest.squeeze(1), delta)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which a linear function with this gradient grows fastest.

    sign(g) for L-inf (Goodfellow et al., 2015), g / |g|_2 for L2. A NaN counts as no information,
    hence zero; an infinity keeps its sign. A sample whose gradient is zero gets the direction zero.
    """
    if norm == "linf":
        return torch.sign(torch.nan_to_num(gradient, nan=0.0))
    gradient = torch.nan_to_num(gradient, nan=0.0)
    norms = l2_norms(gradient)
    return gradient / torch.where(norms > 0, norms, torch.ones_like(norms))


def project(delta: Tensor, epsilon: float, norm: Norm, low: Tensor, high: Tensor) -> Tensor:
    """The point nearest to `delta` inside the ball *and* inside the box [low, high].

    Args:
        delta: perturbations, shape (N, ...).
        epsilon: radius of the ball around zero.
        norm: which ball.
        low: lower bounds of the box, at most 0, broadcastable to `delta`.
        high: upper bounds of the box, at least 0, broadcastable to `delta`.

    For L-inf both sets are boxes and clamping is the exact projection. For L2 the projection is
    ``clip(s * delta, low, high)`` with the largest s in (0, 1] that meets the ball (the optimality
    conditions of the quadratic programme with one multiplier); its norm grows with s, so s is
    found by bisection. Clipping first and shrinking afterwards would meet both sets as well, but
    stop short of the nearest point.
    """
    if norm == "linf":
        low = torch.clamp(low, min=-epsilon)
        high = torch.clamp(high, max=epsilon)
        return torch.minimum(torch.maximum(delta, low), high)

    def clipped(scale: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(delta * scale, low), high)

    ones = _per_sample(delta.new_ones(delta.shape[0]), delta)
    # The smallest useful scale: without any clipping, epsilon / |delta| is already inside.
    inside = torch.clamp(epsilon / l2_norms(delta).clamp_min(torch.finfo(delta.dtype).tiny), max=1)
    outside = ones
    fits = l2_norms(clipped(ones)) <= epsilon
    for _ in range(24):  # halves the bracket to below float32 resolution
        middle = (inside + outside) / 2
        small = l2_norms(clipped(middle)) <= epsilon
        inside = torch.where(small, middle, inside)
        outside = torch.where(small, outside, middle)
    return clipped(torch.where(fits, ones, inside))


def random_point(like: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """A uniformly random point of each sample's ball, shape and dtype of `like`."""
    shape, device, dtype = like.shape, like.device, like.dtype
    if norm == "linf":
        uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        return (2 * uniform - 1) * epsilon
    direction = steepest(
        torch.randn(shape, generator=generator, device=device, dtype=dtype), "l2"
    )
    uniform = torch.rand(shape[0], generator=generator, device=device, dtype=dtype)
    radius = uniform ** (1 / max(1, like[0].numel()))
    return direction * _per_sample(radius, like) * epsilon


def random_direction(like: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A random extreme point of each sample's unit ball: random signs, or a random direction."""
    noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return steepest(noise, norm)

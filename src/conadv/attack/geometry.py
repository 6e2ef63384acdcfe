"""Norm balls: the steepest direction, the projection, a random point.

Everything here is in the units in which the perturbation is bounded and knows nothing of pixels,
so that the same balls serve images, embeddings and weights. The first dimension counts the
samples: each sample has a ball of its own, and may have a radius of its own.

With ``block`` above 1 a ball is cut with the perturbations that are constant on squares of so many
values a side along the last two dimensions (smaller ones at the far edges): those of low frequency.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")
Radius = float | Tensor
"""One for all samples, or one for each, above 0, of shape (N, 1, ..., 1)."""

_NEWTON_STEPS = 12
"""Steps to the exact projection; a fixed number, for a test of the end would wait for the GPU."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, ..., 1) so that it broadcasts against `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def _largest(delta: Tensor) -> Tensor:
    """Largest magnitude of each sample, shape (N, 1, ..., 1); one where that is zero."""
    largest = per_sample(delta.reshape(delta.shape[0], -1).abs().amax(dim=1), delta)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def l2_norms(delta: Tensor) -> Tensor:
    """Euclidean norm of each sample, shape (N, 1, ..., 1).

    Each sample is divided by its largest entry first: squares of float32 gradients under 1e-19
    underflow, and those of a mean over 98,304 images are not far from it.
    """
    largest = _largest(delta)
    flat = (delta / largest).reshape(delta.shape[0], -1)
    return per_sample(flat.norm(dim=1), delta) * largest


def block_means(values: Tensor, block: int) -> Tensor:
    """Each value becomes the mean of its block: the nearest tensor that is constant on blocks.

    Args:
        values: shape (N, C, H, W).
        block: side of a block.
    """
    return _spread(nn.functional.avg_pool2d(values, block, ceil_mode=True), block, values)


def _spread(coarse: Tensor, block: int, like: Tensor) -> Tensor:
    """One value per block, repeated over the block, in the shape and memory format of `like`."""
    height, width = like.shape[-2:]
    rows = torch.arange(height, device=like.device) // block
    columns = torch.arange(width, device=like.device) // block
    whole = coarse[..., rows[:, None], columns]
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return whole.contiguous(memory_format=torch.channels_last) if last else whole


def steepest(gradient: Tensor, norm: Norm, block: int = 1) -> Tensor:
    """The direction of unit norm along which a linear function with this gradient grows fastest.

    sign(g) for L-inf (Goodfellow et al., 2015), g / |g|_2 for L2; of the directions that are
    constant on blocks the same of g's means over blocks. A NaN counts as no information, hence
    zero; an infinity keeps its sign. A sample whose gradient is zero gets the direction zero.
    """
    gradient = torch.nan_to_num(gradient, nan=0.0)
    if block > 1:
        # Scaled first: sums of infinities, which are the largest numbers by now, would overflow.
        gradient = block_means(gradient / _largest(gradient), block)
    if norm == "linf":
        return torch.sign(gradient)
    # By the largest entry first, so that no norm overflows or underflows on the way.
    scaled = gradient / _largest(gradient)
    return scaled / l2_norms(scaled).clamp_min(1.0)


def project(
    delta: Tensor,
    epsilon: Radius,
    norm: Norm,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """The point nearest to `delta` inside the ball *and* inside the box [low, high].

    Args:
        delta: perturbations, finite, shape (N, ...).
        epsilon: radius of the ball around zero.
        norm: which ball.
        low: lower bounds of the box, at most 0, broadcastable to `delta`; None: no box.
        high: upper bounds of the box, at least 0, broadcastable to `delta`; None: no box.

    For L-inf both sets are boxes and clamping is the exact projection. For L2 the projection is
    ``clip(s * delta, low, high)`` with the largest s in [0, 1] that meets the ball (the optimality
    conditions of the quadratic programme with one multiplier). Clipping first and shrinking
    afterwards would meet both sets as well, but stop short of the nearest point.
    """
    if norm == "linf":
        bound: Any = epsilon  # torch types two numbers or two tensors, not either
        delta = delta.clamp(-bound, bound)
        return delta if low is None or high is None else delta.clamp(low, high)
    if not isinstance(epsilon, Tensor) and epsilon == 0:
        return torch.zeros_like(delta)
    if low is not None and high is not None:
        delta = (_scale_into_box(delta, epsilon, low, high) * delta).clamp(low, high)
    # Without a box this is the projection; with one it removes an overshoot by rounding.
    norms = l2_norms(delta)
    if isinstance(epsilon, Tensor):
        return delta * (epsilon / torch.maximum(norms, epsilon))
    return delta * (epsilon / norms.clamp_min(epsilon))


def _scale_into_box(delta: Tensor, epsilon: Radius, low: Tensor, high: Tensor) -> Tensor:
    """The s in [0, 1] for which clip(s * delta, low, high) has the norm epsilon, (N, 1, ..., 1).

    In u = s^2 the squared norm, sum(min(u * delta^2, bound^2)), is concave, increasing and
    piecewise linear. Newton's method from the left of the root therefore never passes it and ends
    exactly on it: each step solves for u with the entries clipped so far held at their bounds.
    """
    largest = _largest(delta)
    size = delta.abs() / largest
    bound = torch.where(delta >= 0, high, -low) / epsilon  # in units of epsilon from here on
    bound_squared, size_squared = bound.square(), size.square()
    limit = largest / epsilon
    scale = 1 / l2_norms(size).clamp_min(1.0)
    for _ in range(_NEWTON_STEPS):
        clipped = scale * size >= bound
        held = torch.where(clipped, bound_squared, 0.0).reshape(delta.shape[0], -1).sum(dim=1)
        free = torch.where(clipped, 0.0, size_squared).reshape(delta.shape[0], -1).sum(dim=1)
        root = torch.sqrt((1 - held).clamp_min(0) / free)
        new = torch.where(free > 0, root, math.inf)  # all are held: the ball does not bind
        scale = torch.maximum(scale, torch.minimum(per_sample(new, delta), limit))
    return torch.minimum(scale, limit) / limit


def random_point(
    like: Tensor, epsilon: Radius, norm: Norm, generator: torch.Generator, block: int = 1
) -> Tensor:
    """A uniformly random point of each sample's ball, shape and dtype of `like`."""
    shape, device, dtype = like.shape, like.device, like.dtype
    if norm == "linf":
        uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        if block > 1:  # the value of one pixel for its block
            uniform = _spread(uniform[..., ::block, ::block], block, like)
        return (2 * uniform - 1) * epsilon
    noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    direction = steepest(noise, "l2", block)
    uniform = torch.rand(shape[0], generator=generator, device=device, dtype=dtype)
    dimensions = like[0].numel() if block == 1 else like[0, ..., ::block, ::block].numel()
    radius = uniform ** (1 / max(1, dimensions))
    return direction * per_sample(radius, like) * epsilon


def random_direction(
    like: Tensor, norm: Norm, generator: torch.Generator, block: int = 1
) -> Tensor:
    """A random extreme point of each sample's unit ball: random signs, or a random direction."""
    noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return steepest(noise, norm, block)

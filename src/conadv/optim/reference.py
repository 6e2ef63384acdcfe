"""LARS and LAMB as they are written on paper: one tensor at a time, nothing clever.

The multi-tensor implementation is tested against these functions, and the fused one on the CPU
is these functions, compiled: there a 0-dimensional tensor stands for each number of the settings.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Number = float | Tensor
"""A float or a tensor with one element and no dimension."""


@dataclass(frozen=True)
class LARSSettings:
    """One parameter group of LARS; the names are those of :class:`conadv.optim.LARS`."""

    lr: Number
    momentum: float
    weight_decay: float
    trust_coefficient: float
    eps: float
    trust_clip: float | None
    nesterov: bool
    lr_in_momentum: bool
    adapt: bool
    maximize: bool


@dataclass(frozen=True)
class LAMBSettings:
    """One parameter group of LAMB; the names are those of :class:`conadv.optim.LAMB`."""

    lr: Number
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    trust_clip: float | None
    bias_correction: bool
    grad_averaging: bool
    adapt: bool
    maximize: bool


def norm(tensor: Tensor) -> Tensor:
    """L2 norm, at least in float32: in half precision the sum of squares overflows."""
    low = tensor.dtype in (torch.float16, torch.bfloat16)
    result: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32 if low else None)
    return result


def lars_ratio(weight_norm: Tensor, grad_norm: Tensor, s: LARSSettings) -> Tensor:
    """``trust_coefficient |w| / (|g| + weight_decay |w| + eps)``, or 1 if |w| or |g| is 0.

    Args:
        weight_norm: |w|, of any shape: one value per parameter.
        grad_norm: |g|, of the same shape.
        s: settings of the group.
    """
    decayed = grad_norm + s.weight_decay * weight_norm + s.eps
    return _guarded(s.trust_coefficient * weight_norm / decayed, weight_norm, grad_norm, s)


def lamb_ratio(weight_norm: Tensor, update_norm: Tensor, s: LAMBSettings) -> Tensor:
    """``|w| / |update|``, or 1 if either is 0. Arguments as in :func:`lars_ratio`."""
    return _guarded(weight_norm / update_norm, weight_norm, update_norm, s)


def _guarded(ratio: Tensor, a: Tensor, b: Tensor, s: LARSSettings | LAMBSettings) -> Tensor:
    if s.trust_clip is not None:
        ratio = torch.clamp(ratio, max=s.trust_clip)
    return torch.where((a > 0) & (b > 0), ratio, torch.ones_like(ratio))


Norms = tuple[Tensor, Tensor] | None
"""The two norms of a trust ratio where they are not those of the tensors at hand, or None."""


def lars_(
    weight: Tensor, grad: Tensor, buffer: Tensor | None, s: LARSSettings, norms: Norms = None
) -> None:
    """One LARS step, in place.

    With ``lr_in_momentum`` (TensorFlow, MLPerf, optax)::

        v = momentum * v + lr * ratio * (g + weight_decay * w)
        w = w - v

    Without (timm)::

        v = momentum * v + ratio * (g + weight_decay * w)
        w = w - lr * v

    Nesterov replaces the v of the second line by ``momentum * v`` plus the term just added to v.

    Args:
        weight: w, any shape.
        grad: g, the same shape; not changed.
        buffer: v, the same shape, or None without momentum.
        s: settings of the group.
        norms: |w| and |g|, if the tensors are a rank's parts of larger ones.
    """
    grad = -grad if s.maximize else grad
    scale: Number = s.lr if s.lr_in_momentum else 1.0
    if s.adapt:
        scale = scale * lars_ratio(*(norms or (norm(weight), norm(grad))), s)
    update = (grad + s.weight_decay * weight) * scale
    if buffer is not None:
        buffer.mul_(s.momentum).add_(update)
        update = update + s.momentum * buffer if s.nesterov else buffer
    weight.sub_(update if s.lr_in_momentum else s.lr * update)


def bias_correction(beta: float, step: float) -> float:
    """``1 - beta ** step``, by which Adam's moments are too small after ``step`` steps."""
    return 1.0 if beta == 0 else -math.expm1(step * math.log(beta))


def bias_correction_on_device(beta: float, step: Tensor) -> Tensor:
    """As :func:`bias_correction`, of a tensor of step counts; nothing is read back."""
    step = step.double()
    return torch.ones_like(step) if beta == 0 else -torch.expm1(step * math.log(beta))


def lamb_(
    weight: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> None:
    """One LAMB step, in place.

    The equations::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g ** 2
        u = (m / correction1) / (sqrt(v / correction2) + eps) + weight_decay * w
        w = w - lr * |w| / |u| * u

    Args:
        weight: w, any shape.
        grad: g, the same shape; not changed.
        first: m, the same shape.
        second: v, the same shape.
        corrections: ``1 - beta ** step`` of both moments; 1 and 1 without bias correction.
        s: settings of the group.
    """
    update = lamb_update(weight, grad, first, second, corrections, s)
    lamb_apply_(weight, update, s)


def lamb_update(
    weight: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> Tensor:
    """The update u of :func:`lamb_`; changes the moments in place."""
    grad = -grad if s.maximize else grad
    first.mul_(s.beta1).add_(grad * (1.0 - s.beta1) if s.grad_averaging else grad)
    second.mul_(s.beta2).add_(grad * grad * (1.0 - s.beta2))
    update = (first / corrections[0]) / ((second / corrections[1]).sqrt() + s.eps)
    return update + s.weight_decay * weight


def lamb_apply_(weight: Tensor, update: Tensor, s: LAMBSettings, norms: Norms = None) -> None:
    """The last line of :func:`lamb_`: w = w - lr * ratio * u, in place.

    Args:
        weight: w, any shape.
        update: u, the same shape.
        s: settings of the group.
        norms: |w| and |u|, if the tensors are a rank's parts of larger ones.
    """
    scale: Number = s.lr
    if s.adapt:
        scale = scale * lamb_ratio(*(norms or (norm(weight), norm(update))), s)
    weight.sub_(update * scale)

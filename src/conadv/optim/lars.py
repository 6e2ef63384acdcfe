"""The LARS optimizer."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from conadv.optim.base import (
    Implementation,
    LayerwiseOptimizer,
    Update,
    at_least_zero,
    gradients,
    in_unit_interval,
    learning_rate,
)
from conadv.optim.multi_tensor import (
    Norms,
    Number,
    add_scaled_,
    as_list,
    guarded,
    norm,
    norms_of,
    pieces,
)
from conadv.optim.sharded import local


class LARS(LayerwiseOptimizer):
    r"""Layer-wise adaptive rate scaling: SGD whose step is a share of each layer's norm.

    By default the learning rate is inside the momentum buffer, as in TensorFlow, the MLPerf
    references and optax, with which the published recipes were tuned:

        ratio = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
        v = momentum * v + lr * ratio * (g + weight_decay * w)
        w = w - v

    ``lr_in_momentum=False`` gives timm's form, in which a change of the learning rate acts at
    once on the whole of v. The two differ as soon as the learning rate changes:

        v = momentum * v + ratio * (g + weight_decay * w)
        w = w - lr * v

    The ratio is 1 where |w| or |g| is 0, and in groups with ``adapt=False``: pass
    ``param_groups(model, weight_decay)`` so that bias and norm are neither adapted nor decayed.
    Unlike timm's Lars, a group without weight decay is adapted, and ``trust_clip`` bounds the
    ratio itself, not ratio / lr. optax's ``lars`` has ``|g + weight_decay * w|`` in the
    denominator; the two are equal without weight decay.

    Args:
        params: parameters or groups; a group may set any of the arguments below and ``adapt``.
        lr: learning rate, a number or a tensor with one element (on the device of the
            parameters if a CUDA graph is to see it change).
        momentum: decay of the buffer, in [0, 1).
        weight_decay: L2 penalty, part of the gradient.
        trust_coefficient: size of a step as a share of the layer's norm.
        eps: added to the denominator of the ratio.
        nesterov: step with ``momentum * v`` plus the newest term instead of v.
        lr_in_momentum: whether the learning rate is inside v.
        trust_clip: upper bound of the ratio, or None.
        maximize: climb instead of descend.
        capturable: for CUDA graphs. LARS never reads a value back from the device, so this only
            declares the intention; give ``lr`` as a tensor on the device.
        foreach: multi-tensor operations (True or None) or one tensor at a time (False).

    Raises:
        ValueError: a setting out of its range, or a complex parameter.

    Example:
        >>> import torch
        >>> from conadv.optim import LARS, param_groups
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=10.0)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()

    References:
        You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, arXiv
        1708.03888; the place of the learning rate: MLPerf Training, ResNet-50 reference.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        lr_in_momentum: bool = True,
        trust_clip: float | None = None,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            nesterov=nesterov,
            lr_in_momentum=lr_in_momentum,
            trust_clip=trust_clip,
            maximize=maximize,
            capturable=capturable,
            foreach=foreach,
        )
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        at_least_zero(self, group, "trust_coefficient")
        in_unit_interval(self, "momentum", group["momentum"])
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("LARS: nesterov=True needs a momentum above 0.")

    def _updates(
        self, params: list[Tensor], group: dict[str, Any], implementation: Implementation
    ) -> Iterator[Update]:
        lr = learning_rate(group, params[0].device)
        weights, grads = [local(p) for p in params], gradients(params)
        buffers = [local(self._buffer(p)) for p in params] if group["momentum"] else None
        if implementation == "reference":
            each: Iterable[Tensor | None] = buffers or repeat(None, len(weights))
            for w, g, v in zip(weights, grads, each, strict=True):
                norms = (norm(w), norm(g)) if group["adapt"] else None
                yield norms, partial(lars_, w, g, v, lr, group)
        else:
            for part in pieces(weights):
                ws, gs = weights[part], grads[part]
                vs = None if buffers is None else buffers[part]
                norms = (norms_of(ws), norms_of(gs)) if group["adapt"] else None
                yield norms, partial(lars_list_, ws, gs, vs, lr, group)

    def _buffer(self, p: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def lars_ratio(norms: tuple[Tensor, Tensor], s: Mapping[str, Any]) -> Tensor:
    """``trust_coefficient |w| / (|g| + weight_decay |w| + eps)``, or 1 if |w| or |g| is 0."""
    weight, grad = norms
    decayed = grad + s["weight_decay"] * weight + s["eps"]
    return guarded(s["trust_coefficient"] * weight / decayed, weight, grad, s["trust_clip"])


def lars_(
    weight: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    lr: Number,
    s: Mapping[str, Any],
    norms: Norms,
) -> None:
    """One step by the equations of `LARS`, in place.

    Args:
        weight: w, any shape.
        grad: g, the same shape; not changed.
        buffer: v, the same shape, or None without momentum.
        lr: learning rate.
        s: the group's other settings.
        norms: |w| and |g|, without dimensions; None: the ratio is 1.
    """
    grad = -grad if s["maximize"] else grad
    scale: Number = lr if s["lr_in_momentum"] else 1.0
    if norms is not None:
        scale = scale * lars_ratio(norms, s)
    update = (grad + s["weight_decay"] * weight) * scale
    if buffer is not None:
        buffer.mul_(s["momentum"]).add_(update)
        update = update + s["momentum"] * buffer if s["nesterov"] else buffer
    weight.sub_(update if s["lr_in_momentum"] else lr * update)


def lars_list_(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | None,
    lr: Number,
    s: Mapping[str, Any],
    norms: Norms,
) -> None:
    """`lars_` of a list of tensors of one device and dtype; the norms have one dimension."""
    # The sign of `maximize` goes into the factors, so g is neither copied nor changed.
    sign = -1.0 if s["maximize"] else 1.0
    inside = sign * lr if s["lr_in_momentum"] else sign
    outside = 1.0 if s["lr_in_momentum"] else lr
    if norms is not None:
        inside = lars_ratio(norms, s) * inside
    directions = grads
    if s["weight_decay"] != 0:
        directions = as_list(torch._foreach_add(grads, weights, alpha=sign * s["weight_decay"]))
    if buffers is not None:
        torch._foreach_mul_(buffers, s["momentum"])
        add_scaled_(buffers, directions, inside)
    if buffers is None or s["nesterov"]:
        add_scaled_(weights, directions, inside * -outside)
    if buffers is not None:
        add_scaled_(weights, buffers, -outside * s["momentum"] if s["nesterov"] else -outside)

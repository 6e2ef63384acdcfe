"""The LAMB optimizer."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from conadv.optim.base import (
    Implementation,
    LayerwiseOptimizer,
    Update,
    check_betas,
    gradients,
    learning_rate,
)
from conadv.optim.multi_tensor import (
    Norms,
    Number,
    add_number_,
    add_scaled_,
    as_list,
    guarded,
    norm,
    norms_of,
    part_of,
    pieces,
)
from conadv.optim.sharded import local

Tensors = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""w, g, m and v of some parameters."""

Corrections = tuple[Number, Number]
"""``1 - beta ** step`` of m and v: numbers, or tensors with a value for each parameter."""


class LAMB(LayerwiseOptimizer):
    r"""Adam whose step is scaled to each layer's norm.

    With c1 and c2 the bias corrections ``1 - beta ** step``:

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g ** 2
        u = (m / c1) / (sqrt(v / c2) + eps) + weight_decay * w
        w = w - lr * |w| / |u| * u

    The ratio |w| / |u| is 1 where either norm is 0, and in groups with ``adapt=False``: pass
    ``param_groups(model, weight_decay)`` so that bias and norm are neither adapted nor decayed.
    The form is that of optax's ``lamb`` and of timm's ``Lamb`` with ``max_grad_norm=None``:
    clip the gradient yourself where a recipe says so. Unlike timm's, a group without weight
    decay is adapted.

    Args:
        params: parameters or groups; a group may set any of the arguments below and ``adapt``.
        lr: learning rate, a number or a tensor with one element (on the device of the
            parameters if a CUDA graph is to see it change).
        betas: decay of the two moments, each in [0, 1).
        eps: added to the square root.
        weight_decay: part of the update, so scaled by the ratio with it.
        bias_correction: divide the moments by ``1 - beta ** step``.
        grad_averaging: False adds g instead of ``(1 - beta1) * g`` to m.
        trust_clip: upper bound of the ratio, or None.
        maximize: climb instead of descend.
        capturable: for CUDA graphs: the step counts live on the parameters' device.
        foreach: multi-tensor operations (True or None) or one tensor at a time (False).

    Raises:
        ValueError: a setting out of its range, or a complex parameter.

    Example:
        >>> import torch
        >>> from conadv.optim import LAMB, param_groups
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LAMB(param_groups(model, weight_decay=0.01), lr=1e-3)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()

    References:
        You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*,
        arXiv 1904.00962.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        trust_clip: float | None = None,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            bias_correction=bias_correction,
            grad_averaging=grad_averaging,
            trust_clip=trust_clip,
            maximize=maximize,
            capturable=capturable,
            foreach=foreach,
        )
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_betas(self, group["betas"])

    def _updates(
        self, params: list[Tensor], group: dict[str, Any], implementation: Implementation
    ) -> Iterator[Update]:
        lr = learning_rate(group, params[0].device)
        # In float16, eps * sqrt(c2) of the multi-tensor form would vanish.
        one_by_one = implementation == "reference" or params[0].dtype == torch.float16
        for tensors, corrections in self._advance(params, group):
            if one_by_one:
                for (w, g, m, v), both in _each(tensors, corrections):
                    u = lamb_update(w, g, m, v, both, group)
                    norms = (norm(w), norm(u)) if group["adapt"] else None
                    yield norms, partial(lamb_apply_, w, u, lr, group)
                continue
            for part in pieces(tensors[0]):
                ws, gs, ms, vs = (each[part] for each in tensors)
                here = part_of(corrections[0], part), part_of(corrections[1], part)
                us, scale = lamb_updates(ws, gs, ms, vs, here, group)
                norms = (norms_of(ws), norms_of(us)) if group["adapt"] else None
                yield norms, partial(lamb_apply_list_, ws, us, scale, lr, group)

    def _advance(
        self, params: list[Tensor], group: dict[str, Any]
    ) -> list[tuple[Tensors, Corrections]]:
        """Count the step, and list the tensors of each pair of bias corrections.

        Of DTensors they are this rank's parts.
        """
        states = [self._state(p, group["capturable"]) for p in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        lists = (
            [local(p) for p in params],
            gradients(params),
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
        )
        found = []
        for indices, corrections in _corrections(steps, group):
            w, g, m, v = ([tensors[i] for i in indices] for tensors in lists)
            found.append(((w, g, m, v), corrections))
        return found

    def _state(self, p: Tensor, capturable: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        device = p.device if capturable else torch.device("cpu")
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        elif state["step"].device != device:  # loaded from a state of the other setting
            state["step"] = state["step"].to(device)
        return state


def _corrections(steps: list[Tensor], s: Mapping[str, Any]) -> list[tuple[list[int], Corrections]]:
    """Which parameters share a pair of bias corrections, and the pair.

    A parameter counts its own steps, since it may have had no gradient in some of them. With
    ``capturable`` the counts stay on the device, and the pair has one value for each parameter.
    """
    everything = list(range(len(steps)))
    beta1, beta2 = s["betas"]
    if not s["bias_correction"]:
        return [(everything, (1.0, 1.0))]
    if s["capturable"] or torch.compiler.is_compiling():
        stacked = torch.stack(steps)
        first = bias_correction_on_device(beta1, stacked)
        return [(everything, (first, bias_correction_on_device(beta2, stacked)))]
    by_step: dict[float, list[int]] = {}
    for index, step in enumerate(steps):
        by_step.setdefault(step.item(), []).append(index)
    return [
        (indices, (bias_correction(beta1, step), bias_correction(beta2, step)))
        for step, indices in by_step.items()
    ]


def _each(
    tensors: Tensors, corrections: Corrections
) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor, Tensor], Corrections]]:
    """w, g, m, v and the bias corrections of one parameter after the other."""
    for index, four in enumerate(zip(*tensors, strict=True)):
        c1, c2 = (c[index] if isinstance(c, Tensor) else c for c in corrections)
        yield four, (c1, c2)


def lamb_ratio(norms: tuple[Tensor, Tensor], s: Mapping[str, Any]) -> Tensor:
    """``|w| / |u|``, or 1 if either is 0."""
    return guarded(norms[0] / norms[1], *norms, s["trust_clip"])


def bias_correction(beta: float, step: float) -> float:
    """``1 - beta ** step``, by which Adam's moments are too small after ``step`` steps."""
    return 1.0 if beta == 0 else -math.expm1(step * math.log(beta))


def bias_correction_on_device(beta: float, step: Tensor) -> Tensor:
    """Compute `bias_correction` of a tensor of step counts; nothing is read back."""
    step = step.double()
    return torch.ones_like(step) if beta == 0 else -torch.expm1(step * math.log(beta))


def lamb_update(
    weight: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: Corrections,
    s: Mapping[str, Any],
) -> Tensor:
    """The update u by the equations of `LAMB`; changes the moments in place.

    Args:
        weight: w, any shape.
        grad: g, the same shape; not changed.
        first: m, the same shape.
        second: v, the same shape.
        corrections: ``1 - beta ** step`` of both moments; 1 and 1 without bias correction.
        s: the group's settings.
    """
    beta1, beta2 = s["betas"]
    grad = -grad if s["maximize"] else grad
    first.mul_(beta1).add_(grad * (1.0 - beta1) if s["grad_averaging"] else grad)
    second.mul_(beta2).add_(grad * grad * (1.0 - beta2))
    update = (first / corrections[0]) / ((second / corrections[1]).sqrt() + s["eps"])
    decayed: Tensor = update + s["weight_decay"] * weight
    return decayed


def lamb_apply_(
    weight: Tensor, update: Tensor, lr: Number, s: Mapping[str, Any], norms: Norms
) -> None:
    """``w = w - lr * ratio * u``, in place; the norms have no dimension, None: the ratio is 1."""
    weight.sub_(update * (lr if norms is None else lr * lamb_ratio(norms, s)))


def lamb_updates(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: Corrections,
    s: Mapping[str, Any],
) -> tuple[list[Tensor], Number]:
    """`lamb_update` of a list of tensors of one device and dtype.

    Returns:
        New tensors and a factor on them (a number, or a tensor of one dimension with a value for
        each): their products are the updates u.
    """
    beta1, beta2 = s["betas"]
    if s["grad_averaging"] and not s["maximize"]:
        torch._foreach_lerp_(firsts, grads, 1.0 - beta1)  # one pass less
    else:
        new = 1.0 - beta1 if s["grad_averaging"] else 1.0
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, grads, alpha=-new if s["maximize"] else new)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_addcmul_(seconds, grads, grads, value=1.0 - beta2)
    # m / c1 / (sqrt(v / c2) + eps) = scale * m / (sqrt(v) + eps * sqrt(c2)), scale = sqrt(c2) / c1:
    # the corrections cost no pass of their own.
    root = corrections[1] ** 0.5
    scale = root / corrections[0]
    denominators = as_list(torch._foreach_sqrt(seconds))
    add_number_(denominators, s["eps"] * root)
    updates = as_list(torch._foreach_div(firsts, denominators))
    del denominators
    if s["weight_decay"] != 0:
        add_scaled_(updates, weights, s["weight_decay"] / scale)
    return updates, scale


def lamb_apply_list_(
    weights: list[Tensor],
    updates: list[Tensor],
    scale: Number,
    lr: Number,
    s: Mapping[str, Any],
    norms: Norms,
) -> None:
    """`lamb_apply_` of a list of tensors.

    Args:
        weights: w.
        updates: u / scale.
        scale: the factor, as `lamb_updates` returns it.
        lr: learning rate.
        s: the group's other settings.
        norms: |w| and |u / scale|, of one dimension; None: the ratio is 1.
    """
    rate = -lr * scale
    if norms is not None:
        rate = lamb_ratio((norms[0], norms[1] * scale), s) * rate
    add_scaled_(weights, updates, rate)

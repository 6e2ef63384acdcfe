"""The LAMB optimizer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from conadv.optim.base import (
    Implementation,
    LayerwiseOptimizer,
    gradients,
    in_unit_interval,
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
from conadv.optim.sharded import Unfinished, local

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
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
                "grad_averaging": grad_averaging,
                "trust_clip": trust_clip,
                "maximize": maximize,
                "capturable": capturable,
                "foreach": foreach,
            },
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if len(group["betas"]) != 2:
            raise ValueError(f"LAMB: betas={group['betas']!r}; give two numbers.")
        for index, beta in enumerate(group["betas"]):
            in_unit_interval(self, f"betas[{index}]", beta)

    def _update(
        self, params: list[Tensor], group: dict[str, Any], implementation: Implementation
    ) -> None:
        s = _settings(group, params[0].device)
        for tensors, corrections in self._advance(params, group, s):
            # In float16, eps * sqrt(c2) of the multi-tensor form would vanish.
            if implementation == "reference" or params[0].dtype == torch.float16:
                for (w, g, m, v), both in _each(tensors, corrections):
                    lamb_(w, g, m, v, both, s)
            else:
                lamb_list_(*tensors, corrections, s)

    def _until_norms(
        self, params: list[Tensor], group: dict[str, Any], implementation: Implementation
    ) -> list[Unfinished]:
        s = _settings(group, params[0].device)
        begun = []
        for tensors, corrections in self._advance(params, group, s):
            weights = tensors[0]
            finish: Callable[[Tensor], None]
            if implementation == "reference" or params[0].dtype == torch.float16:
                updates = [
                    lamb_update(w, g, m, v, both, s)
                    for (w, g, m, v), both in _each(tensors, corrections)
                ]
                finish = functools.partial(_apply_one_by_one, weights, updates, s)
            else:
                updates, scale = lamb_updates(*tensors, corrections, s)
                finish = functools.partial(lamb_apply_list_, weights, updates, scale, s)
            begun.append(Unfinished(torch.stack([norms_of(weights), norms_of(updates)]), finish))
        return begun

    def _advance(
        self, params: list[Tensor], group: dict[str, Any], s: LAMBSettings
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
        for indices, corrections in _corrections(steps, s, group["capturable"]):
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


def _corrections(
    steps: list[Tensor], s: LAMBSettings, capturable: bool
) -> list[tuple[list[int], Corrections]]:
    """Which parameters share a pair of bias corrections, and the pair.

    A parameter counts its own steps, since it may have had no gradient in some of them. With
    ``capturable`` the counts stay on the device, and the pair has one value for each parameter.
    """
    everything = list(range(len(steps)))
    if not s.bias_correction:
        return [(everything, (1.0, 1.0))]
    if capturable or torch.compiler.is_compiling():
        stacked = torch.stack(steps)
        first = bias_correction_on_device(s.beta1, stacked)
        return [(everything, (first, bias_correction_on_device(s.beta2, stacked)))]
    by_step: dict[float, list[int]] = {}
    for index, step in enumerate(steps):
        by_step.setdefault(step.item(), []).append(index)
    return [
        (indices, (bias_correction(s.beta1, step), bias_correction(s.beta2, step)))
        for step, indices in by_step.items()
    ]


def _settings(group: dict[str, Any], device: torch.device) -> LAMBSettings:
    return LAMBSettings(
        lr=learning_rate(group, device),
        betas=group["betas"],
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        trust_clip=group["trust_clip"],
        bias_correction=group["bias_correction"],
        grad_averaging=group["grad_averaging"],
        adapt=group["adapt"],
        maximize=group["maximize"],
    )


def _each(
    tensors: Tensors, corrections: Corrections
) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor, Tensor], Corrections]]:
    """w, g, m, v and the bias corrections of one parameter after the other."""
    for index, four in enumerate(zip(*tensors, strict=True)):
        c1, c2 = (c[index] if isinstance(c, Tensor) else c for c in corrections)
        yield four, (c1, c2)


def _apply_one_by_one(
    weights: list[Tensor], updates: list[Tensor], s: LAMBSettings, norms: Tensor
) -> None:
    for index, (weight, update) in enumerate(zip(weights, updates, strict=True)):
        lamb_apply_(weight, update, s, (norms[0, index], norms[1, index]))


@dataclass(frozen=True)
class LAMBSettings:
    """One parameter group of LAMB; the names are those of `conadv.optim.LAMB`."""

    lr: Number
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    trust_clip: float | None
    bias_correction: bool
    grad_averaging: bool
    adapt: bool
    maximize: bool

    @property
    def beta1(self) -> float:
        """Decay of m."""
        return self.betas[0]

    @property
    def beta2(self) -> float:
        """Decay of v."""
        return self.betas[1]


def lamb_ratio(weight_norm: Tensor, update_norm: Tensor, s: LAMBSettings) -> Tensor:
    """``|w| / |update|``, or 1 if either is 0."""
    return guarded(weight_norm / update_norm, weight_norm, update_norm, s.trust_clip)


def bias_correction(beta: float, step: float) -> float:
    """``1 - beta ** step``, by which Adam's moments are too small after ``step`` steps."""
    return 1.0 if beta == 0 else -math.expm1(step * math.log(beta))


def bias_correction_on_device(beta: float, step: Tensor) -> Tensor:
    """Compute `bias_correction` of a tensor of step counts; nothing is read back."""
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

    The equations:

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
    """The update u of `lamb_`; changes the moments in place."""
    grad = -grad if s.maximize else grad
    first.mul_(s.beta1).add_(grad * (1.0 - s.beta1) if s.grad_averaging else grad)
    second.mul_(s.beta2).add_(grad * grad * (1.0 - s.beta2))
    update = (first / corrections[0]) / ((second / corrections[1]).sqrt() + s.eps)
    return update + s.weight_decay * weight


def lamb_apply_(weight: Tensor, update: Tensor, s: LAMBSettings, norms: Norms = None) -> None:
    """The last line of `lamb_`: w = w - lr * ratio * u, in place.

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


def lamb_list_(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> None:
    """One LAMB step of a list of tensors of one device and dtype, in place.

    Args:
        weights: w.
        grads: g; not changed.
        firsts: m.
        seconds: v.
        corrections: ``1 - beta ** step`` of both moments: a number for all tensors, or a tensor
            of one dimension with a value for each.
        s: settings of the group; of its numbers only ``lr`` may be a tensor.
    """
    for part in pieces(weights):
        w, g, m, v = (tensors[part] for tensors in (weights, grads, firsts, seconds))
        here = (part_of(corrections[0], part), part_of(corrections[1], part))
        updates, scale = _lamb_updates(w, g, m, v, here, s)
        lamb_apply_list_(w, updates, scale, s)


def lamb_updates(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> tuple[list[Tensor], Number]:
    """The first half of `lamb_list_`, which changes the moments.

    Returns:
        New tensors and a factor on them (a number, or a tensor of one dimension with a value for
        each): their products are the updates u.
    """
    updates: list[Tensor] = []
    for part in pieces(weights):
        w, g, m, v = (tensors[part] for tensors in (weights, grads, firsts, seconds))
        here = (part_of(corrections[0], part), part_of(corrections[1], part))
        updates += _lamb_updates(w, g, m, v, here, s)[0]
    return updates, corrections[1] ** 0.5 / corrections[0]


def lamb_apply_list_(
    weights: list[Tensor],
    updates: list[Tensor],
    scale: Number,
    s: LAMBSettings,
    norms: Tensor | None = None,
) -> None:
    """The second half of `lamb_list_`: w = w - lr * ratio * u.

    Args:
        weights: w.
        updates: u / scale.
        scale: the factor, as `lamb_updates` returns it.
        s: settings of the group.
        norms: |w| and |u / scale| of shape (2, number of tensors), if the tensors are a rank's
            parts of larger ones.
    """
    rate = -s.lr * scale
    if s.adapt:
        both = (norms_of(weights), norms_of(updates)) if norms is None else (norms[0], norms[1])
        rate = lamb_ratio(both[0], both[1] * scale, s) * rate
    add_scaled_(weights, updates, rate)


def _lamb_updates(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> tuple[list[Tensor], Number]:
    if s.grad_averaging and not s.maximize:
        torch._foreach_lerp_(firsts, grads, 1.0 - s.beta1)  # one pass less
    else:
        new = 1.0 - s.beta1 if s.grad_averaging else 1.0
        torch._foreach_mul_(firsts, s.beta1)
        torch._foreach_add_(firsts, grads, alpha=-new if s.maximize else new)
    torch._foreach_mul_(seconds, s.beta2)
    torch._foreach_addcmul_(seconds, grads, grads, value=1.0 - s.beta2)
    # m / c1 / (sqrt(v / c2) + eps) = scale * m / (sqrt(v) + eps * sqrt(c2)), scale = sqrt(c2) / c1:
    # the corrections cost no pass of their own.
    root = corrections[1] ** 0.5
    scale = root / corrections[0]
    denominators = as_list(torch._foreach_sqrt(seconds))
    add_number_(denominators, s.eps * root)
    updates = as_list(torch._foreach_div(firsts, denominators))
    del denominators
    if s.weight_decay != 0:
        add_scaled_(updates, weights, s.weight_decay / scale)
    return updates, scale

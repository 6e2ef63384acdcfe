"""The LAMB optimizer."""

import functools
from collections.abc import Callable, Iterator
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
from conadv.optim.fused import fused_lamb
from conadv.optim.multi_tensor import lamb_apply_list_, lamb_list_, lamb_updates, norms_of
from conadv.optim.reference import (
    LAMBSettings,
    Number,
    bias_correction,
    bias_correction_on_device,
    lamb_,
    lamb_apply_,
    lamb_update,
)
from conadv.optim.sharded import Unfinished, local

Tensors = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""w, g, m and v of some parameters."""

Corrections = tuple[Number, Number]
"""``1 - beta ** step`` of m and v: numbers, or tensors with a value for each parameter."""


class LAMB(LayerwiseOptimizer):
    r"""Adam whose step is scaled to each layer's norm.

    With c1 and c2 the bias corrections ``1 - beta ** step``::

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
        fused: compile the step with torch.compile: on the CPU about half of the time, after
            some seconds of compilation in the first step. Needs a C++ compiler (CPU) or Triton
            (GPU); without one there is one warning, and the multi-tensor operations do the step.
            They also do it for DTensors (``fully_shard``), whose norms are summed over the ranks
            in the middle of the step.

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
        fused: bool = False,
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
                "fused": fused,
            },
        )

    def _check_group(self, group: dict[str, Any]) -> None:
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
            elif implementation == "fused":
                fused_lamb(*tensors, corrections, s)
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
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return LAMBSettings(
        lr=learning_rate(group, device),
        beta1=beta1,
        beta2=beta2,
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

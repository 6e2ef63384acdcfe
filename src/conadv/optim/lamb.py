"""The LAMB optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from conadv.optim._base import (
    Implementation,
    LayerwiseOptimizer,
    gradients,
    in_unit_interval,
    learning_rate,
)
from conadv.optim._fused import fused_lamb
from conadv.optim.multi_tensor import lamb_list_
from conadv.optim.reference import (
    LAMBSettings,
    Number,
    bias_correction,
    bias_correction_on_device,
    lamb_,
)


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
        beta1, beta2 = (float(beta) for beta in group["betas"])
        settings = LAMBSettings(
            lr=learning_rate(group, params[0].device),
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
        grads = gradients(params)
        states = [self._state(p, group["capturable"]) for p in params]
        steps = [state["step"] for state in states]
        firsts = [state["exp_avg"] for state in states]
        seconds = [state["exp_avg_sq"] for state in states]
        torch._foreach_add_(steps, 1.0)
        for indices, corrections in _corrections(steps, settings, group["capturable"]):
            w, g, m, v = ([a[i] for i in indices] for a in (params, grads, firsts, seconds))
            # In float16, eps * sqrt(c2) of the multi-tensor form would vanish.
            if implementation == "reference" or params[0].dtype == torch.float16:
                _one_by_one(w, g, m, v, corrections, settings)
            elif implementation == "fused":
                fused_lamb(w, g, m, v, corrections, settings)
            else:
                lamb_list_(w, g, m, v, corrections, settings)

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


Corrections = tuple[Number, Number]


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


def _one_by_one(
    params: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: Corrections,
    s: LAMBSettings,
) -> None:
    for index, (w, g, m, v) in enumerate(zip(params, grads, firsts, seconds, strict=True)):
        c1, c2 = (c[index] if isinstance(c, Tensor) else c for c in corrections)
        lamb_(w, g, m, v, (c1, c2), s)

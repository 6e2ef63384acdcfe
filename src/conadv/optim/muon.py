"""Muon for whole networks: matrices and convolutions by Muon, everything else by AdamW."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import muon
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from conadv.optim.base import CheckedOptimizer, at_least_zero, check_betas, in_unit_interval
from conadv.optim.sharded import Layout, Unfinished, is_dtensor

ADJUST_LR = ("original", "match_rms_adamw", "spectral_unclamped")
"""How torch scales the learning rate to a matrix's shape; the last one since some later release."""


class Muon(CheckedOptimizer):
    r"""Momentum whose matrices are made orthogonal, and AdamW for what is no matrix.

    The update of matrices is torch's own (``torch.optim.Muon``), which takes 2-D parameters only.
    A convolution of shape (out, in, h, w) is the matrix (out, in * h * w) here. With NS five
    Newton-Schulz iterations in bfloat16, which bring all singular values near 1:

        v = momentum * v + (1 - momentum) * g
        u = NS((1 - momentum) * g + momentum * v)       NS(v) without Nesterov
        w = (1 - lr * weight_decay) * w - lr * s * u

    s depends on the matrix's shape (A, B): ``0.2 * sqrt(max(A, B))`` for ``"match_rms_adamw"``,
    after which one learning rate serves both halves; ``sqrt(max(1, A / B))`` for ``"original"``;
    ``sqrt(A / B)`` for ``"spectral_unclamped"``.

    Parameters of fewer than two dimensions, and groups with ``adapt=False``, are updated by AdamW:
    pass ``param_groups(model, weight_decay, exclude=[...])`` with the classifier and embeddings
    excluded, which Muon is not meant for.

    Args:
        params: parameters or groups; a group may set any of the arguments below and ``adapt``.
        lr: learning rate, a number or a tensor with one element.
        weight_decay: decoupled, times the learning rate.
        momentum: of matrices, in [0, 1).
        nesterov: of matrices.
        ns_steps: Newton-Schulz iterations, 1 to 99.
        adjust_lr_fn: one of :data:`ADJUST_LR` that the installed torch knows.
        betas: decay of AdamW's two moments, each in [0, 1).
        eps: added to AdamW's square root.

    Raises:
        ValueError: a setting out of its range, a complex or a sharded (``fully_shard``) parameter.

    Example:
        >>> import torch
        >>> from conadv.optim import Muon, param_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> optimizer = Muon(param_groups(model, weight_decay=0.01, exclude=["1.*"]), lr=1e-3)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*,
        https://kellerjordan.github.io/posts/muon; Liu et al., *Muon is Scalable for LLM Training*,
        arXiv 2502.16982 (``match_rms_adamw``).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = dict(
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            betas=betas,
            eps=eps,
            adapt=True,
        )
        super().__init__(params, defaults)

    def _update_group(
        self, params: list[Tensor], group: dict[str, Any]
    ) -> list[tuple[Layout, Unfinished]]:
        matrices = [p for p in params if group["adapt"] and p.ndim > 1 and p.numel()]
        self._step_matrices(matrices, group)
        self._step_rest([p for p in params if not (group["adapt"] and p.ndim > 1)], group)
        return []

    def _problem(self, p: Tensor) -> str | None:
        if not p.is_complex() and not is_dtensor(p):
            return None
        kind = "complex" if p.is_complex() else "sharded"
        return (
            f"{kind}; whole real matrices are allowed. Use LARS, LAMB or one of torch.optim for it."
        )

    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            order = _memory_order(p)
            tensors = (p, state["momentum_buffer"])
            weight, buffer = (_as_matrix(t, order) for t in tensors)
            assert p.grad is not None
            muon(
                [weight],
                [_as_matrix(p.grad, order)],
                [buffer],
                lr=float(group["lr"]),
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                nesterov=group["nesterov"],
                ns_coefficients=NS_COEFFICIENTS,
                ns_steps=group["ns_steps"],
                eps=NS_EPS,
                adjust_lr_fn=group["adjust_lr_fn"],
                has_complex=False,
            )
            for tensor, matrix in zip(tensors, (weight, buffer), strict=True):
                if matrix.data_ptr() != tensor.data_ptr():  # not a view: its strides forbid one
                    tensor.permute(order).copy_(matrix.view(tensor.permute(order).shape))

    def _step_rest(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _check_group(self, s: dict[str, Any]) -> None:
        at_least_zero(self, s, "lr", "weight_decay", "eps")
        in_unit_interval(self, "momentum", s["momentum"])
        check_betas(self, s["betas"])
        if s["adjust_lr_fn"] not in ADJUST_LR:
            raise ValueError(
                f"Muon: adjust_lr_fn={s['adjust_lr_fn']!r}; allowed are {', '.join(ADJUST_LR)}."
            )
        if not torch_adjusts_by(s["adjust_lr_fn"]):
            known = ", ".join(filter(torch_adjusts_by, ADJUST_LR))
            raise ValueError(
                f"Muon: adjust_lr_fn={s['adjust_lr_fn']!r} is not known to torch "
                f"{torch.__version__}, which has {known}. Take one of them, or a newer torch."
            )
        if not (isinstance(s["ns_steps"], int) and 1 <= s["ns_steps"] < 100):
            raise ValueError(f"Muon: ns_steps={s['ns_steps']!r}; give a whole number from 1 to 99.")


@lru_cache
def torch_adjusts_by(name: str) -> bool:
    """Whether the installed torch scales learning rates in this way; its update would not say."""
    try:
        torch.optim.Muon([torch.zeros(1, 1)], adjust_lr_fn=name)
    except ValueError:
        return False
    return True


NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial; torch's default."""
NS_EPS = 1e-7
"""Lower bound of the norm that a matrix is divided by; torch's default."""


def _memory_order(p: Tensor) -> list[int]:
    """Dimensions such that those after the first lie in memory as in a contiguous tensor.

    Which of a matrix's columns is which makes no difference to Muon, so channels-last weights are
    flattened where they lie, without a copy.
    """
    strides = p.stride()
    return [0, *sorted(range(1, p.ndim), key=lambda dim: -strides[dim])]


def _as_matrix(tensor: Tensor, order: list[int]) -> Tensor:
    """Shape (first dimension, all others), sharing memory where strides allow it."""
    return tensor.permute(order).flatten(1)

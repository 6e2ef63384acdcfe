"""Every optimizer of ours with its options, and a small problem to drive them with."""

from typing import Any

import torch
from torch import Tensor, nn

from conadv.optim import LAMB, LARS

SHAPES = ((5, 3), (4,), (), (2, 3, 3, 3), (0, 3), (40, 10))

OPTIONS: dict[str, tuple[type[LARS] | type[LAMB], dict[str, Any]]] = {
    "lars": (LARS, {"lr": 0.5, "weight_decay": 0.1}),
    "lars-plain": (LARS, {"lr": 0.5, "momentum": 0.0}),
    "lars-nesterov": (LARS, {"lr": 0.5, "weight_decay": 0.1, "nesterov": True}),
    "lars-outside": (LARS, {"lr": 0.5, "weight_decay": 0.1, "lr_in_momentum": False}),
    "lars-outside-nesterov": (LARS, {"lr": 0.5, "lr_in_momentum": False, "nesterov": True}),
    "lars-clip": (LARS, {"lr": 0.5, "trust_coefficient": 0.5, "trust_clip": 0.3, "eps": 0.01}),
    "lars-maximize": (LARS, {"lr": 0.5, "weight_decay": 0.1, "nesterov": True, "maximize": True}),
    "lars-capturable": (LARS, {"lr": 0.5, "weight_decay": 0.1, "capturable": True}),
    "lamb": (LAMB, {"lr": 0.02}),
    "lamb-plain": (LAMB, {"lr": 0.02, "weight_decay": 0.0, "bias_correction": False}),
    "lamb-no-averaging": (LAMB, {"lr": 0.02, "grad_averaging": False}),
    "lamb-clip": (LAMB, {"lr": 0.02, "trust_clip": 0.5, "betas": (0.0, 0.9)}),
    "lamb-maximize": (LAMB, {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    "lamb-capturable": (LAMB, {"lr": 0.02, "capturable": True}),
}

IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
}


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """Gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def make(case: str, implementation: str, params: list[nn.Parameter], **more: Any) -> LARS | LAMB:
    """An optimizer with two groups: the tensors with dimensions adapted, the others not."""
    kind, options = OPTIONS[case]
    weights = [p for p in params if p.ndim > 1]
    rest = [p for p in params if p.ndim <= 1]
    groups = [{"params": weights}, {"params": rest, "adapt": False, "weight_decay": 0.0}]
    return kind(groups, **{**options, **IMPLEMENTATIONS[implementation], **more})


def run(optimizer: LARS | LAMB, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def values(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params]

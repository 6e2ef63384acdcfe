"""LAMB against closed form, the published form written out in numpy, and other packages."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from conadv.optim import LAMB

Array = NDArray[np.float64]
STEPS = 5


def problem(seed: int = 0) -> tuple[Array, list[Array]]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(4, 3)), [generator.normal(size=(4, 3)) for _ in range(STEPS)]


def drive(optimizer: torch.optim.Optimizer, w: nn.Parameter, gradients: list[Array]) -> Array:
    for gradient in gradients:
        w.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return w.detach().numpy()


def ours(start: Array, gradients: list[Array], **options: Any) -> Array:
    w = nn.Parameter(torch.from_numpy(start.copy()))
    return drive(LAMB([w], **options), w, gradients)


def published(
    w: Array,
    gradients: list[Array],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    bias_correction: bool = True,
    grad_averaging: bool = True,
) -> Array:
    """optax.lamb is scale_by_adam, add_decayed_weights, scale_by_trust_ratio, learning rate."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0] if grad_averaging else 1) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = m / (1 - betas[0] ** step) if bias_correction else m
        v_hat = v / (1 - betas[1] ** step) if bias_correction else v
        update = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w
        w = w - lr * np.linalg.norm(w) / np.linalg.norm(update) * update
    return w


OPTIONS = [
    {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0},
    {"lr": 0.1, "betas": (0.9, 0.999), "eps": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.3, "bias_correction": False},
    {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.3, "grad_averaging": False},
    {"lr": 0.1, "betas": (0.0, 0.0), "eps": 0.1, "weight_decay": 0.3},
]
options = pytest.mark.parametrize("options", OPTIONS)


def test_closed_form_on_two_weights() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LAMB([w], lr=0.1, eps=0.0, weight_decay=0.0)
    w.grad = torch.tensor([0.5, -2.0], dtype=torch.float64)
    optimizer.step()  # both moments have one gradient: u = sign(g), |u| = sqrt(2), |w| = 5
    torch.testing.assert_close(w.tolist(), [3 - 0.5 / math.sqrt(2), 4 + 0.5 / math.sqrt(2)])


@options
def test_published_form(options: dict[str, Any]) -> None:
    w, gradients = problem()
    np.testing.assert_allclose(
        ours(w, gradients, **options), published(w, gradients, **options), rtol=1e-12
    )


@options
def test_installed_timm(options: dict[str, Any]) -> None:
    lamb = pytest.importorskip("timm.optim.lamb")
    start, gradients = problem()
    w = nn.Parameter(torch.from_numpy(start.copy()))
    theirs = lamb.Lamb([w], always_adapt=True, max_grad_norm=None, **options)
    np.testing.assert_allclose(
        ours(start, gradients, **options), drive(theirs, w, gradients), rtol=1e-9
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_installed_optax() -> None:
    optax = pytest.importorskip("optax")
    w, gradients = problem()
    optimizer = optax.lamb(0.1, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.3)
    theirs = w.astype(np.float32)
    state = optimizer.init(theirs)
    for g in gradients:
        update, state = optimizer.update(g.astype(np.float32), state, theirs)
        theirs = optax.apply_updates(theirs, update)
    mine = ours(w, gradients, lr=0.1, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.3)
    np.testing.assert_allclose(mine, np.asarray(theirs), rtol=2e-5, atol=1e-6)


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4),
    power=st.integers(-6, 12),
    lr=st.floats(1e-4, 1.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_step_is_a_share_of_the_norm_whatever_the_gradient(
    shape: list[int], power: int, lr: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    before = w.detach().clone()
    w.grad = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**power
    LAMB([w], lr=lr).step()
    moved = (w.detach() - before).norm().item()
    assert math.isclose(moved, lr * before.norm().item(), rel_tol=1e-9)


def test_clip_bounds_the_ratio() -> None:
    w = nn.Parameter(torch.full((4,), 10.0))
    w.grad = torch.full((4,), 3.0)
    LAMB([w], lr=1.0, eps=0.0, weight_decay=0.0, trust_clip=0.5).step()
    torch.testing.assert_close(w.tolist(), [9.5] * 4)  # u = 1; unclipped, the ratio is 10


def test_group_without_adaptation_is_adam() -> None:
    start, gradients = problem()
    w, plain = (nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2))
    group = {"params": [w], "adapt": False, "weight_decay": 0.0}
    mine = drive(LAMB([group], lr=0.1, eps=1e-3), w, gradients)
    adam = torch.optim.Adam([plain], lr=0.1, eps=1e-3)
    np.testing.assert_allclose(mine, drive(adam, plain, gradients), rtol=1e-9)


@pytest.mark.parametrize("foreach", [False, True])
def test_each_parameter_counts_its_own_steps(foreach: bool) -> None:
    start, gradients = problem()
    early, late = (nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2))
    optimizer = LAMB([early, late], lr=0.1, foreach=foreach)
    for step, g in enumerate(gradients):
        early.grad = torch.from_numpy(g.copy())
        late.grad = torch.from_numpy(gradients[step - 2].copy()) if step >= 2 else None
        optimizer.step()
    np.testing.assert_allclose(
        late.detach().numpy(), ours(start, gradients[: STEPS - 2], lr=0.1), rtol=1e-12
    )
    np.testing.assert_allclose(early.detach().numpy(), ours(start, gradients, lr=0.1), rtol=1e-12)


def test_float16_survives_a_zero_gradient_at_the_first_step() -> None:
    w = nn.Parameter(torch.ones(4, dtype=torch.float16))
    w.grad = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float16)
    LAMB([w], lr=0.1, foreach=True).step()
    assert w.isfinite().all() and w[1] < 1


@pytest.mark.parametrize(
    ("betas", "message"), [((0.9, 1.0), r"betas\[1\]=1.0.*below 1"), ((0.9,), "two numbers")]
)
def test_betas_out_of_range(betas: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAMB([torch.zeros(2)], betas=betas)  # type: ignore[arg-type]

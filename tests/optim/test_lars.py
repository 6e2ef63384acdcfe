"""LARS against closed form, published forms written out in numpy, and other people's packages."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from conadv.optim import LARS

Array = NDArray[np.float64]
RATES = [0.1, 0.7, 1.3, 0.4, 0.05]
"""A learning rate that changes tells the two places it can have apart."""


def problem(seed: int = 0) -> tuple[Array, list[Array]]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(4, 3)), [generator.normal(size=(4, 3)) for _ in RATES]


def ours(start: Array, gradients: list[Array], **options: Any) -> Array:
    w = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = LARS([w], lr=0.0, **options)
    for lr, gradient in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return w.detach().numpy()


def sum_of_norms(g: Array, w: Array, wd: float) -> float:
    return float(np.linalg.norm(g) + wd * np.linalg.norm(w))


def norm_of_sum(g: Array, w: Array, wd: float) -> float:
    return float(np.linalg.norm(g + wd * w))


def optax_lars(
    w: Array,
    gradients: list[Array],
    norm: Callable[[Array, Array, float], float],
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
    nesterov: bool,
) -> Array:
    """optax.lars: decay, trust ratio, learning rate, and only then the momentum."""
    trace = np.zeros_like(w)
    for lr, g in zip(RATES, gradients, strict=True):
        update = g + weight_decay * w
        update *= trust_coefficient * np.linalg.norm(w) / (norm(g, w, weight_decay) + eps)
        update *= -lr
        trace = update + momentum * trace
        w = w + (update + momentum * trace if nesterov else trace)
    return w


def timm_lars(
    w: Array,
    gradients: list[Array],
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
    nesterov: bool,
) -> Array:
    """timm's Lars with always_adapt: trust ratio, momentum, and the learning rate at the end."""
    buffer = np.zeros_like(w)
    for lr, g in zip(RATES, gradients, strict=True):
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        ratio = trust_coefficient * w_norm / (g_norm + w_norm * weight_decay + eps)
        update = (g + weight_decay * w) * ratio
        buffer = momentum * buffer + update
        w = w - lr * (update + momentum * buffer if nesterov else buffer)
    return w


OPTIONS = [
    {
        "momentum": momentum,
        "weight_decay": decay,
        "trust_coefficient": 0.3,
        "eps": eps,
        "nesterov": nesterov,
    }
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    for decay, eps in ((0.0, 0.0), (0.2, 1e-2))
]
options = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))


def test_closed_form_on_two_weights() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([w], lr=2.0, momentum=0.5, weight_decay=0.1, trust_coefficient=0.03)
    w.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
    # |w| = 5, |g| = 1: ratio = 0.03 * 5 / (1 + 0.5) = 0.1; v = 2 * 0.1 * (0.9, 1.2).
    optimizer.step()
    torch.testing.assert_close(w.tolist(), [3 - 0.18, 4 - 0.24])
    # The learning rate rises tenfold: what is in the buffer stays as it is.
    optimizer.param_groups[0]["lr"] = 20.0
    w.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()  # |g| = 0: ratio 1, only decay: v = 0.5 v + 20 * 0.1 * w
    torch.testing.assert_close(w.tolist(), [2.82 - 0.09 - 2 * 2.82, 3.76 - 0.12 - 2 * 3.76])


def test_closed_form_with_the_learning_rate_outside() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([w], lr=2.0, momentum=0.5, trust_coefficient=0.1, lr_in_momentum=False)
    w.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
    optimizer.step()  # ratio = 0.1 * 5 / 1; v = (0.3, 0.4)
    torch.testing.assert_close(w.tolist(), [3 - 0.6, 4 - 0.8])
    optimizer.param_groups[0]["lr"] = 20.0
    w.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()  # the new learning rate multiplies the old buffer
    torch.testing.assert_close(w.tolist(), [2.4 - 20 * 0.15, 3.2 - 20 * 0.2])


@options
def test_inside_form_is_optax_up_to_its_norm(options: dict[str, Any]) -> None:
    w, gradients = problem()
    np.testing.assert_allclose(
        ours(w, gradients, **options), optax_lars(w, gradients, sum_of_norms, **options), rtol=1e-12
    )
    exact = optax_lars(w, gradients, norm_of_sum, **options)
    if options["weight_decay"] == 0:
        np.testing.assert_allclose(ours(w, gradients, **options), exact, rtol=1e-12)
    else:  # the stated difference is a real one
        assert np.abs(ours(w, gradients, **options) - exact).max() > 1e-3


@options
def test_outside_form_is_timm(options: dict[str, Any]) -> None:
    w, gradients = problem()
    result = ours(w, gradients, lr_in_momentum=False, **options)
    np.testing.assert_allclose(result, timm_lars(w, gradients, **options), rtol=1e-12)
    if options["momentum"]:  # the two forms are two optimizers
        assert np.abs(result - ours(w, gradients, **options)).max() > 1e-3


def test_the_two_forms_agree_while_the_learning_rate_stays() -> None:
    w, gradients = problem()
    ends = []
    for inside in (True, False):
        p = nn.Parameter(torch.from_numpy(w.copy()))
        optimizer = LARS([p], lr=0.7, weight_decay=0.1, trust_coefficient=0.3)
        optimizer.param_groups[0]["lr_in_momentum"] = inside
        for g in gradients:
            p.grad = torch.from_numpy(g.copy())
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)


@options
def test_installed_timm(options: dict[str, Any]) -> None:
    lars = pytest.importorskip("timm.optim.lars")
    start, gradients = problem()
    w = nn.Parameter(torch.from_numpy(start.copy()))
    renamed = {("trust_coeff" if k == "trust_coefficient" else k): v for k, v in options.items()}
    optimizer = lars.Lars([w], always_adapt=True, **renamed)
    for lr, g in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.from_numpy(g.copy())
        optimizer.step()
    mine = ours(start, gradients, lr_in_momentum=False, **options)
    np.testing.assert_allclose(mine, w.detach().numpy(), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nesterov", [False, True])
def test_installed_optax(nesterov: bool) -> None:
    optax = pytest.importorskip("optax")
    w, gradients = problem()
    schedule = optax.join_schedules(
        [optax.constant_schedule(lr) for lr in RATES], list(range(1, len(RATES)))
    )
    optimizer = optax.lars(schedule, trust_coefficient=0.3, momentum=0.9, nesterov=nesterov)
    theirs = w.astype(np.float32)
    state = optimizer.init(theirs)
    for g in gradients:
        update, state = optimizer.update(g.astype(np.float32), state, theirs)
        theirs = optax.apply_updates(theirs, update)
    mine = ours(w, gradients, trust_coefficient=0.3, momentum=0.9, nesterov=nesterov)
    np.testing.assert_allclose(mine, np.asarray(theirs), rtol=2e-5, atol=1e-6)


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4),
    power=st.integers(-12, 12),
    lr=st.floats(1e-3, 50.0),
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
    LARS([w], lr=lr, trust_coefficient=0.01).step()
    moved = (w.detach() - before).norm().item()
    assert math.isclose(moved, lr * 0.01 * before.norm().item(), rel_tol=1e-9)


def test_clip_bounds_the_ratio_but_not_the_ratio_of_a_zero_weight() -> None:
    w, zero = nn.Parameter(torch.full((4,), 10.0)), nn.Parameter(torch.zeros(4))
    w.grad, zero.grad = torch.full((4,), 1.0), torch.full((4,), 1.0)
    LARS([w, zero], lr=1.0, trust_coefficient=1.0, trust_clip=0.5).step()
    assert w.tolist() == [9.5] * 4  # unclipped, the ratio is 10
    assert zero.tolist() == [-1.0] * 4


def test_group_without_adaptation_is_sgd_with_momentum() -> None:
    start, gradients = problem()
    w, plain = (nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2))
    lars = LARS([{"params": [w], "adapt": False}], lr=0.1, weight_decay=0.2)
    sgd = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=0.2)
    for g in gradients:
        w.grad, plain.grad = torch.from_numpy(g.copy()), torch.from_numpy(g.copy())
        lars.step()
        sgd.step()
    torch.testing.assert_close(w, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0.*below 1"),
        ({"trust_coefficient": -1.0}, "trust_coefficient=-1.0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True needs a momentum"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([torch.zeros(2)], lr=1.0, **setting)

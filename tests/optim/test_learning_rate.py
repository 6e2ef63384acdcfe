"""Warm-up and decay: exact values, bounds, and the same numbers from the schedulers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conadv.optim import (
    LARS,
    WarmupCosine,
    WarmupPolynomial,
    decay_factor,
    linear_lr,
    scaled_lr,
    sqrt_lr,
    warmup_cosine,
    warmup_poly,
)

numbers = {
    "total": st.integers(1, 2000),
    "warmup": st.floats(0, 500),
    "end": st.floats(0, 1),
    "step": st.integers(0, 2500),
}


def test_exact_values() -> None:
    poly = [warmup_poly(s, total=6, warmup=2, power=2.0) for s in range(8)]
    assert poly == [0.5, 1.0, 1.0, 0.75**2, 0.5**2, 0.25**2, 0.0, 0.0]
    cosine = [warmup_cosine(s, total=6, warmup=2, end=0.2) for s in range(2, 7)]
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * p)) / 2 for p in (0, 0.25, 0.5, 0.75, 1)]
    assert cosine == pytest.approx(expected, abs=1e-15)
    # The schedule of the 98,304-image run: warm-up 41 of 99.8 epochs, power 1.6.
    total, warmup = 1301, 1301 * 41 / 99.8
    factor = (1 - (918 - warmup) / (total - warmup)) ** 1.6
    assert warmup_poly(918, total, warmup, power=1.6) == pytest.approx(factor)


def test_constant_after_the_warm_up() -> None:
    assert [warmup_poly(s, 4, 2, 1.0, 1.0) for s in range(6)] == [0.5, 1, 1, 1, 1, 1]


def test_run_shorter_than_its_warm_up() -> None:
    assert [warmup_poly(s, total=2, warmup=4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(4, total=2, warmup=4, end=0.1) == pytest.approx(0.1)


@given(power=st.floats(0.1, 5), **numbers)
def test_bounds_and_direction(
    step: int, total: int, warmup: float, end: float, power: float
) -> None:
    for factor in (
        lambda s: warmup_poly(s, total, warmup, power, end),
        lambda s: warmup_cosine(s, total, warmup, end),
    ):
        now, then = factor(step), factor(step + 1)
        assert 0 <= now <= 1 + 1e-12
        if step + 1 < warmup:
            assert 0 < now <= then
        elif step >= warmup:
            assert now >= then - 1e-12 and now >= end - 1e-12
        if step >= max(total, warmup):
            assert now == pytest.approx(end)


def test_schedulers_follow_the_functions() -> None:
    weight = nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr": 2.0}, {"params": [nn.Parameter(torch.ones(1))]}]
    for make, factor in (
        (
            lambda o: WarmupPolynomial(o, 10, 3, 1.6, 0.1),
            lambda s: warmup_poly(s, 10, 3, 1.6, 0.1),
        ),
        (lambda o: WarmupCosine(o, 10, 3, 0.1), lambda s: warmup_cosine(s, 10, 3, 0.1)),
    ):
        optimizer = LARS([dict(g) for g in groups], lr=5.0)
        scheduler = make(optimizer)
        for step in range(12):
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == [2.0 * factor(step), 5.0 * factor(step)]
            assert scheduler.get_last_lr() == rates
            optimizer.step()
            scheduler.step()


def test_scheduler_state_goes_on() -> None:
    def make() -> tuple[LARS, WarmupPolynomial]:
        optimizer = LARS([nn.Parameter(torch.ones(2))], lr=5.0)
        return optimizer, WarmupPolynomial(optimizer, total=10, warmup=3)

    optimizer, scheduler = make()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    other, resumed = make()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for o, s in ((optimizer, scheduler), (other, resumed)):
        o.step()
        s.step()
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"] == 5.0 * (5 / 7) ** 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total": 0}, "total=0"),
        ({"total": 10, "warmup": -1}, "warmup=-1"),
        ({"total": 10, "end": 1.5}, "end=1.5"),
        ({"total": 10, "power": 0}, "power=0"),
        ({"total": float("nan")}, "total=nan"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    optimizer = LARS([nn.Parameter(torch.ones(2))], lr=5.0)
    with pytest.raises(ValueError, match=message):
        warmup_poly(0, **values)
    with pytest.raises(ValueError, match=message):
        WarmupPolynomial(optimizer, **values)
    if "power" not in values:
        with pytest.raises(ValueError, match=message):
            warmup_cosine(0, **values)
        with pytest.raises(ValueError, match=message):
            WarmupCosine(optimizer, **values)
    assert optimizer.param_groups[0]["lr"] == 5.0
    with pytest.raises(ValueError, match="step=-1"):
        warmup_poly(-1, 10)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("poly", [0.5, 1.0, 1.0, 0.25 + 0.75 * 0.5**3, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.25 + 0.75 * 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_decay_by_name(decay: Any, expected: list[float]) -> None:
    factor = decay_factor(decay, total=10, warmup=2, power=3, end=0.25)
    assert [factor(step) for step in (0, 1, 2, 6, 10)] == pytest.approx(expected)


def test_a_scaling_rule_by_name() -> None:
    assert scaled_lr(0.1, "none", 256, 1024) == 0.1
    assert scaled_lr(0.1, "linear", 256, 1024) == linear_lr(0.1, 256, 1024) == 0.4
    assert scaled_lr(0.1, "sqrt", 256, 1024) == sqrt_lr(0.1, 256, 1024) == 0.2

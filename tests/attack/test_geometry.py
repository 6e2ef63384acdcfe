"""Norm balls against oracles in float64."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import conadv
from conadv.attack import geometry

QUICK = settings(max_examples=60, deadline=None)


def nearest_by_bisection(delta, epsilon, low, high):
    """clip(s * delta) with the largest s that meets the ball, by 200 halvings in float64."""
    if np.linalg.norm(np.clip(delta, low, high)) <= epsilon:
        return np.clip(delta, low, high)
    inside, outside = 0.0, 1.0
    for _ in range(200):
        middle = (inside + outside) / 2
        if np.linalg.norm(np.clip(middle * delta, low, high)) <= epsilon:
            inside = middle
        else:
            outside = middle
    return np.clip(inside * delta, low, high)


def nearest_by_dykstra(delta, epsilon, low, high, rounds=20_000):
    """Alternating projections with Dykstra's correction: knows nothing of the closed form."""
    point, ball, box = delta.copy(), np.zeros_like(delta), np.zeros_like(delta)
    for _ in range(rounds):
        previous = point
        moved = point + ball
        inside = moved * min(1.0, epsilon / max(np.linalg.norm(moved), 1e-300))
        ball = moved - inside
        point = np.clip(inside + box, low, high)
        box = inside + box - point
        if np.abs(point - previous).max() < 1e-13:
            break
    return point


def project_l2(delta, epsilon, low, high):
    args = [torch.from_numpy(np.asarray(a, dtype=np.float64))[None] for a in (delta, low, high)]
    return geometry.project(args[0], epsilon, "l2", args[1], args[2])[0].numpy()


values = st.floats(-4, 4)
widths = st.one_of(st.just(0.0), st.floats(1e-3, 2))


@st.composite
def problems(draw):
    size = draw(st.integers(1, 12))
    delta = draw(hnp.arrays(np.float64, size, elements=values))
    low = -draw(hnp.arrays(np.float64, size, elements=widths))
    high = draw(hnp.arrays(np.float64, size, elements=widths))
    return delta, draw(st.floats(0.01, 5)), low, high


@QUICK
@given(problems())
def test_l2_and_box_is_the_nearest_point(problem):
    delta, epsilon, low, high = problem
    got = project_l2(delta, epsilon, low, high)
    np.testing.assert_allclose(got, nearest_by_bisection(*problem), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_l2_and_box_agrees_with_solvers_that_know_no_closed_form(seed):
    rng = np.random.default_rng(seed)
    delta, epsilon = rng.normal(size=5) * 2, 0.8
    low, high = -rng.uniform(0, 1, 5), rng.uniform(0, 1, 5)
    got = project_l2(delta, epsilon, low, high)
    np.testing.assert_allclose(got, nearest_by_dykstra(delta, epsilon, low, high), atol=1e-6)
    solved = scipy.optimize.minimize(
        lambda p: ((p - delta) ** 2).sum(),
        np.zeros(5),
        jac=lambda p: 2 * (p - delta),
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "ineq", "fun": lambda p: epsilon**2 - (p**2).sum()},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(got, solved.x, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.99, 2.0, 10.0])
def test_l2_and_box_with_bounds_that_are_reached_one_after_another(ratio):
    """As many breakpoints as entries: the worst case for a fixed number of Newton steps."""
    high = ratio ** -np.arange(60.0) * 0.3
    delta = np.full(60, 5.0)
    for epsilon in (0.01, 0.1, 0.5, 0.9 * float(np.linalg.norm(high))):
        got = project_l2(delta, epsilon, -high, high)
        want = nearest_by_bisection(delta, epsilon, -high, high)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@QUICK
@given(problems())
def test_linf_is_the_nearest_point(problem):
    delta, epsilon, low, high = problem
    got = geometry.project(
        torch.from_numpy(delta)[None],
        epsilon,
        "linf",
        torch.from_numpy(low)[None],
        torch.from_numpy(high)[None],
    )[0].numpy()
    # Coordinate by coordinate, the best of a fine grid of feasible values and of the ends.
    for value, below, above, result in zip(delta, low, high, got, strict=True):
        below, above = max(below, -epsilon), min(above, epsilon)
        candidates = np.append(np.linspace(below, above, 101), np.clip(value, below, above))
        assert below <= result <= above
        assert abs(result - value) <= np.abs(candidates - value).min() + 1e-12


@pytest.mark.parametrize("norm", geometry.NORMS)
@pytest.mark.parametrize("box", [False, True])
def test_projection_is_idempotent_and_keeps_what_is_inside(norm, box):
    delta = torch.randn(6, 3, 5, 5)
    bounds = (-torch.rand_like(delta), torch.rand_like(delta)) if box else (None, None)
    once = geometry.project(delta, 0.5, norm, *bounds)
    torch.testing.assert_close(geometry.project(once, 0.5, norm, *bounds), once, rtol=1e-6, atol=0)
    inside = once / 2
    assert torch.equal(geometry.project(inside, 0.5, norm, *bounds), inside)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e18, 1e30])
def test_l2_projection_is_exact_for_far_points(scale):
    """1e18 away, a bisection on the factor would stop with the wrong one."""
    delta = torch.randn(4, 50) * scale
    low, high = torch.full_like(delta, -0.02), torch.full_like(delta, 0.03)
    got = geometry.project(delta, 0.1, "l2", low, high)
    for row in range(4):
        want = nearest_by_bisection(delta[row].double().numpy() / max(scale, 1.0), 0.1, -0.02, 0.03)
        if scale < 1:
            want = delta[row].numpy()
        np.testing.assert_allclose(got[row].numpy(), want, rtol=2e-5, atol=0)


def test_l2_projection_stays_in_ball_and_box_when_the_only_large_entry_is_saturated():
    delta = torch.tensor([[1e30, 1e3, 1.0]])
    low, high = torch.tensor([[-1.0, -5.0, -5.0]]), torch.tensor([[0.0, 5.0, 5.0]])
    got = geometry.project(delta, 0.1, "l2", low, high)
    assert float(got.norm()) <= 0.1 * (1 + 1e-6)
    assert float(got[0, 0]) == 0.0


def test_epsilon_zero_is_the_origin():
    for norm in geometry.NORMS:
        got = geometry.project(torch.randn(2, 7), 0.0, norm, -torch.ones(2, 7), torch.ones(2, 7))
        assert torch.equal(got, torch.zeros(2, 7))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (3, 2, 4, 5), (3, 1, 2, 4, 5)])
def test_each_sample_has_a_ball_of_its_own(shape):
    delta = torch.randn(shape) * torch.tensor([0.1, 10.0, 1000.0]).reshape(
        3, *([1] * (len(shape) - 1))
    )
    got = geometry.project(delta, 0.5, "l2")
    for one, alone in zip(got, delta, strict=True):
        want = alone * min(1.0, 0.5 / float(alone.norm()))
        torch.testing.assert_close(one, want)


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_no_information_gives_no_direction(norm):
    gradient = torch.zeros(2, 3)
    gradient[1] = math.nan
    assert torch.equal(geometry.steepest(gradient, norm), torch.zeros(2, 3))


def test_nan_is_zero_and_infinity_keeps_its_sign():
    gradient = torch.tensor([[math.nan, math.inf, -math.inf, 2.0]])
    assert geometry.steepest(gradient, "linf").tolist() == [[0.0, 1.0, -1.0, 1.0]]
    root = 2**-0.5
    torch.testing.assert_close(
        geometry.steepest(gradient, "l2"), torch.tensor([[0.0, root, -root, 0.0]])
    )


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-19, 1e19, 1e30, 3e37])
def test_direction_does_not_depend_on_the_scale_of_the_gradient(scale):
    gradient = torch.tensor([[3.0, -4.0, 0.0]]) * scale
    tolerance = 0.2 if scale < 1e-40 else 1e-5  # there the gradient itself is rounded
    want = torch.tensor([[0.6, -0.8, 0.0]])
    torch.testing.assert_close(geometry.steepest(gradient, "l2"), want, atol=tolerance, rtol=0)
    assert geometry.steepest(gradient, "linf").tolist() == [[1.0, -1.0, 0.0]]


def test_l2_norm_does_not_underflow():
    assert geometry.l2_norms(torch.full((1, 4), 1e-30)).item() == pytest.approx(2e-30)


def test_random_point_of_linf_is_uniform():
    points = geometry.random_point(torch.empty(1, 20_000), 0.3, "linf", torch.Generator())
    histogram = torch.histc(points, 10, -0.3, 0.3)
    assert points.abs().max() <= 0.3
    assert histogram.sum() == 20_000
    assert ((histogram - 2000).square() / 2000).sum() < 30  # chi-square, 9 degrees of freedom


def test_random_point_of_l2_is_uniform_in_the_ball():
    points = geometry.random_point(torch.empty(20_000, 3), 2.0, "l2", torch.Generator())
    radius = points.norm(dim=1)
    assert radius.max() <= 2.0 * (1 + 1e-6)
    # In a uniform ball of dimension 3 the cube of the relative radius is uniform on [0, 1].
    histogram = torch.histc((radius / 2) ** 3, 10, 0, 1)
    assert ((histogram - 2000).square() / 2000).sum() < 30
    assert points.mean(dim=0).abs().max() < 0.05


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_random_direction_has_unit_norm(norm):
    noise = geometry.random_direction(torch.empty(50, 3, 4, 4), norm, torch.Generator())
    size = noise.abs().amax(dim=(1, 2, 3)) if norm == "linf" else noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(size, torch.ones(50))
    if norm == "linf":
        assert set(noise.unique().tolist()) == {-1.0, 1.0}
        assert abs(float(noise.mean())) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_copies_in_half_precision_keep_the_ball_and_the_range(dtype, norm) -> None:
    """Rounded to the nearest they left it by up to 2.6 %: they are rounded towards the image."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    epsilon = 8 / 255 if norm == "linf" else 0.5
    attack = conadv.Attack(epsilon, mean=mean, std=std, norm=norm, random_start=0.5)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(16, 3, 8, 8, generator=generator)
    images = ((pixels - m) / s).to(dtype)
    gradient = torch.randn(images.shape, generator=generator)
    copies = attack.ascend(images, images, gradient).images
    assert copies.dtype == dtype and not torch.equal(copies, images)
    delta = (copies.float() - images.float()) * s
    size = delta.abs().amax() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert size <= epsilon * (1 + 1e-6)
    before, after = images.float() * s + m, copies.float() * s + m
    assert (after <= before.clamp(min=1) + 1e-6).all() and (
        after >= before.clamp(max=0) - 1e-6
    ).all()

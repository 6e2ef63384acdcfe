"""Perturbations of low frequency, and a radius of its own for every copy."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv import Attack
from conadv.attack import geometry
from conadv.lab.analysis import robustness_curve
from support.loops import EPSILON, MEAN, STD, batches, cross_entropy, network, run, sgd

SIZES = [(8, 8), (7, 5)]
"""Of images; the second leaves smaller blocks at the edges."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks_of(values: Tensor, side: int) -> list[Tensor]:
    """The blocks of (..., H, W), cut by hand."""
    return [
        values[..., top : top + side, left : left + side]
        for top in range(0, values.shape[-2], side)
        for left in range(0, values.shape[-1], side)
    ]


def is_blockwise(values: Tensor, side: int) -> bool:
    return all(bool((b == b[..., :1, :1]).all()) for b in blocks_of(values, side))


class Linear(nn.Module):
    """One weight per pixel: the loss is linear in the image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=generator(3)))

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).flatten(1).sum(dim=1)


def total(outputs: Tensor, labels: Any) -> Tensor:
    return outputs.mean()


# -- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_no_blockwise_perturbation_gains_more(
    size: tuple[int, int], norm: Any
) -> None:
    """Closed form: with s the sums of the weights over blocks of n pixels, the gain is
    epsilon sum |s| for L-inf and epsilon sqrt(sum s^2 / n) for L2 (Cauchy-Schwarz)."""
    model, side = Linear((2, *size)), 3
    images = torch.zeros(4, 2, *size)
    attack = Attack(0.1, mean=0.5, std=1.0, norm=norm, block_size=side)
    moved = attack(model, images, None, total) - images
    assert is_blockwise(moved, side)
    blocks = blocks_of(model.weight.detach(), side)
    sums = torch.stack([b.sum(dim=(-2, -1)) for b in blocks])
    pixels = torch.tensor([[b[0].numel()] for b in blocks])
    best = sums.abs().sum() if norm == "linf" else (sums.square() / pixels).sum().sqrt()
    gained = model(moved)
    torch.testing.assert_close(gained, torch.full_like(gained, 0.1 * float(best)))
    length = moved.abs().amax() if norm == "linf" else moved[0].norm()
    torch.testing.assert_close(length, torch.tensor(0.1))


def test_every_blockwise_sign_pattern_was_beaten() -> None:
    """The same by trying all of them: no formula."""
    model, images = Linear((1, 6, 4)), torch.zeros(1, 1, 6, 4)
    attack = Attack(0.1, mean=0.5, std=1.0, block_size=2)
    found = model(attack(model, images, None, total)).item()
    tried = []
    for signs in itertools.product((-0.1, 0.1), repeat=6):
        pattern = torch.tensor(signs).view(1, 1, 3, 2)
        whole = pattern.repeat_interleave(2, 2).repeat_interleave(2, 3)
        tried.append(model(whole).item())
    assert found == pytest.approx(max(tried))


def test_pixels_that_end_stay_valid_and_the_rest_of_their_block_moves() -> None:
    images = torch.full((1, 1, 4, 4), 0.5)
    images[0, 0, 0, 0] = 1.0
    model = Linear((1, 4, 4))
    with torch.no_grad():
        model.weight.fill_(1.0)
    copies = Attack(0.1, block_size=4)(model, images, None, total)
    assert copies[0, 0, 0, 0] == 1.0
    rest = copies.flatten()[1:]
    torch.testing.assert_close(rest, torch.full_like(rest, 0.6))


def test_a_nan_says_nothing_and_leaves_its_block_alive() -> None:
    gradient = torch.ones(1, 1, 4, 4)
    gradient[0, 0, 0, 0] = math.nan
    gradient[0, 0, 3, 3] = -math.inf
    signs = geometry.steepest(gradient, "linf", 2)
    assert signs[0, 0].tolist() == [[1, 1, 1, 1]] * 2 + [[1, 1, -1, -1]] * 2
    assert geometry.steepest(torch.full((1, 1, 2, 2), math.inf), "linf", 2).eq(1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_have_the_same_direction(norm: Any) -> None:
    gradient = torch.randn(3, 2, 7, 5, generator=generator())
    want = geometry.steepest(gradient, norm, 3)
    torch.testing.assert_close(geometry.steepest(gradient * 1e-38, norm, 3), want)


def test_blocks_of_one_pixel_are_the_ordinary_attack() -> None:
    assert Attack(EPSILON, MEAN, STD, block_size=1) == Attack(EPSILON, MEAN, STD)
    gradient = torch.randn(2, 3, 7, 5)
    assert torch.equal(geometry.block_means(gradient, 1), gradient)


def test_memory_format_is_kept() -> None:
    gradient = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for side in (2, 3):
        means = geometry.block_means(gradient, side)
        assert means.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(means, geometry.block_means(gradient.contiguous(), side))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_are_uniform_in_the_ball_of_blocks(size: tuple[int, int], norm: Any) -> None:
    """In d dimensions radius ** d is uniform (the largest coordinate is the radius of a cube)."""
    like, side = torch.zeros(4000, 1, *size), 4
    points = geometry.random_point(like, 0.5, norm, generator(), side)
    assert is_blockwise(points, side)
    dimensions = -(-size[0] // side) * -(-size[1] // side)
    flat = points.flatten(1)
    radius = (flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)) / 0.5
    uniform = radius**dimensions
    assert radius.max() <= 1 + 1e-6
    assert uniform.mean() == pytest.approx(0.5, abs=4 * 12**-0.5 / 4000**0.5)
    assert (uniform < 0.25).float().mean() == pytest.approx(0.25, abs=0.03)
    assert points.mean().abs() < 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_control_is_blockwise_too(norm: Any) -> None:
    images = torch.full((64, 3, 8, 8), 0.5)
    attack = Attack(0.1, norm=norm, block_size=4)
    moved = attack.noise(images, generator()) - images
    assert is_blockwise(moved, 4)
    size = moved.abs().amax() if norm == "linf" else moved.flatten(1).norm(dim=1).mean()
    assert float(size) == pytest.approx(0.1, rel=1e-4)
    assert moved.sign().mean().abs() < 4 / (64 * 3 * 4) ** 0.5


def test_several_steps_stay_blockwise_and_in_the_ball() -> None:
    images, labels = batches(1)[0]
    attack = Attack(EPSILON, MEAN, STD, steps=4, random_start=1.0, block_size=4, pixel_range=None)
    copies = attack(network(), images, labels, cross_entropy, generator=generator())
    std = torch.tensor(STD).view(1, 3, 1, 1)
    moved = (copies - images) * std
    for block in blocks_of(moved, 4):
        torch.testing.assert_close(block, block[..., :1, :1].expand_as(block))
    assert moved.abs().max() <= EPSILON * (1 + 1e-4)


def test_only_images_have_blocks() -> None:
    attack = Attack(0.1, norm="l2", pixel_range=None, block_size=2)
    with pytest.raises(ValueError, match=r"block_size=2 with inputs of shape \(8, 4, 6\)"):
        attack.check_images(torch.randn(8, 4, 6))


# -- radii ---------------------------------------------------------------------------------------

DRAWN = Attack(EPSILON, MEAN, STD, epsilon_min=EPSILON / 4, pixel_range=None)


def radii(copies: Tensor, origins: Tensor, norm: str = "linf") -> Tensor:
    """Of each image, in pixels."""
    moved = ((copies - origins) * torch.tensor(STD).view(1, 3, 1, 1)).flatten(1)
    return moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)


def test_radii_are_uniform_between_the_two() -> None:
    scales = DRAWN.draw_scales(20_000, generator(), torch.device("cpu"))
    assert scales is not None and scales.min() > 0.25 and scales.max() <= 1
    assert scales.mean() == pytest.approx(0.625, abs=0.01)
    assert (scales < 0.4375).float().mean() == pytest.approx(0.25, abs=0.02)
    assert Attack(0.1).draw_scales(3, generator(), torch.device("cpu")) is None
    assert Attack(0.0, epsilon_min=0.0).draw_scales(3, generator(), torch.device("cpu")) is None
    from_nothing = Attack(0.1, epsilon_min=0.0).draw_scales(10**6, generator(), torch.device("cpu"))
    assert from_nothing is not None and from_nothing.min() > 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("steps", "random_start"), [(1, 0.0), (1, 1.0), (5, 1.0)])
def test_every_copy_keeps_to_its_own_radius(norm: Any, steps: int, random_start: float) -> None:
    images, labels = batches(1, size=32)[0]
    attack = Attack(
        EPSILON,
        MEAN,
        STD,
        norm=norm,
        steps=steps,
        random_start=random_start,
        epsilon_min=EPSILON / 4,
        pixel_range=None,
    )
    copies = attack(network(), images, labels, cross_entropy, generator=generator(5))
    # Drawn first: so they are known here.
    scales = attack.draw_scales(32, generator(5), torch.device("cpu"))
    assert scales is not None
    found = radii(copies, images, norm)
    assert (found <= EPSILON * scales * (1 + 1e-3)).all()
    if steps == 1 and random_start == 0:
        torch.testing.assert_close(found, EPSILON * scales, rtol=1e-3, atol=1e-6)
    else:
        assert (found > 0.3 * EPSILON * scales).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_shrink_with_the_radius(norm: Any) -> None:
    images, labels = batches(1, size=16)[0]
    limits = {"epsilon_min": 0.0, "pixel_range": None}
    attack = Attack(EPSILON, MEAN, STD, norm=norm, step_size=EPSILON / 4, **limits)
    copies = attack(network(), images, labels, cross_entropy, generator=generator(5))
    scales = attack.draw_scales(16, generator(5), torch.device("cpu"))
    assert scales is not None
    want = EPSILON / 4 * scales
    torch.testing.assert_close(radii(copies, images, norm), want, rtol=1e-2, atol=1e-6)


def test_the_pixel_range_binds_with_radii_too() -> None:
    images, labels = batches(1, size=32)[0]
    for norm in ("linf", "l2"):
        attack = Attack(0.5, MEAN, STD, norm=norm, epsilon_min=0.0)
        copies = attack(network(), images, labels, cross_entropy)
        pixels = copies * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
        assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
        assert copies.isfinite().all() and radii(copies, images, norm).max() <= 0.5 * (1 + 1e-4)


def test_recycled_draws_radii_anew_and_a_refined_copy_keeps_its_own() -> None:
    model = network()
    adversary = conadv.Adversary(model, DRAWN, conadv.Recycled(refine=3))
    optimizer, lives = sgd(model), {}
    for batch in batches(5, size=9):
        run(adversary, optimizer, [batch])
        for copies in adversary.schedule._pending:
            assert copies.scales is not None and copies.origins is not None
            key = float(copies.origins.sum())
            lives.setdefault(key, []).append((copies.age, copies.scales, copies))
    assert max(len(life) for life in lives.values()) == 3
    for life in lives.values():
        ages, scales, copies = zip(*life, strict=True)
        assert list(ages) == list(range(1, len(life) + 1))
        assert all(torch.equal(scales[0], one) for one in scales)
        for one in copies:
            limit = EPSILON * one.scales * (1 + 1e-3)
            assert (radii(one.images, one.origins) <= limit).all()
    first = [life[0][1] for life in lives.values()]
    assert len({tuple(one.tolist()) for one in first}) == len(first)


def test_recycled_without_refinement_keeps_no_radii_but_uses_them() -> None:
    model = network()
    adversary = conadv.Adversary(model, DRAWN, "recycled")
    images, labels = batches(1, size=16)[0]
    run(adversary, sgd(model), [(images, labels)])
    (copies,) = adversary.schedule._pending
    assert copies.scales is None
    found = radii(copies.images, images) / EPSILON
    assert found.min() > 0.25 and found.max() <= 1 + 1e-4 and found.std() > 0.1


def test_noise_has_radii() -> None:
    images = torch.zeros(500, 3, 4, 4)
    found = radii(DRAWN.noise(images, generator()), images) / EPSILON
    assert found.min() > 0.25 and found.mean() == pytest.approx(0.625, abs=0.04)


def test_a_curve_over_epsilon_has_one_radius_for_all() -> None:
    data = batches(2)
    fixed = Attack(EPSILON, MEAN, STD)
    drawn = Attack(EPSILON, MEAN, STD, epsilon_min=0.0)
    model = network()
    curves = [robustness_curve(model, data, a, epsilons=(0, EPSILON)) for a in (fixed, drawn)]
    assert curves[0].accuracies == curves[1].accuracies


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon_min": 0.2}, "epsilon_min=0.2: from 0 to epsilon=0.1"),
        ({"epsilon_min": -0.1}, "from 0 to epsilon"),
        ({"epsilon_min": math.nan}, "from 0 to epsilon"),
        ({"block_size": 0}, "block_size=0: a whole number of pixels"),
        ({"block_size": 2.0}, "whole number"),
        ({"block_size": True}, "whole number"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attack(0.1, **arguments)

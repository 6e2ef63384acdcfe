"""An attack in fp16 must not go out without a word."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conadv import Attack
from conadv.attack.fp16 import lift_output_gradient, power_of_two


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GELU(), nn.Flatten(), nn.Linear(576, 10)
    )
    images, labels = torch.rand(32, 3, 8, 8), torch.arange(32) % 10
    return model, images, labels


def many(outputs, labels):
    """The mean of a step of 98,304 images, of which these are a micro-batch."""
    return F.cross_entropy(outputs, labels) * (32 / 98_304)


def signs(model, images, labels, criterion, precision):
    """The sign pattern of the attack's gradient."""
    with torch.autocast("cpu", dtype=precision or torch.float32, enabled=precision is not None):
        copies = Attack(0.1, pixel_range=None)(model, images, labels, criterion)
    return (copies - images).sign()


def naive_signs(model, images, labels, criterion):
    """The attack as one would write it."""
    leaf = images.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        (gradient,) = torch.autograd.grad(criterion(model(leaf), labels), leaf)
    return gradient.sign()


def zeros(pattern):
    return float((pattern == 0).float().mean())


def tiny(outputs, labels):
    return many(outputs, labels) * 1e-6


@pytest.mark.parametrize("criterion", [many, tiny])
def test_fp16_has_the_signs_of_float32(problem, criterion):
    model, images, labels = problem
    exact = signs(model, images, labels, criterion, None)
    half = signs(model, images, labels, criterion, torch.float16)
    naive = naive_signs(model, images, labels, criterion)
    assert zeros(exact) < 0.005
    assert zeros(half) < 0.005
    assert float((half == exact).float().mean()) > 0.98
    assert zeros(naive) > (0.99 if criterion is tiny else 0.02)


def test_zero_share_tells(problem):
    model, images, labels = problem
    from conadv.attack.forward import BareForward

    def share(criterion):
        with torch.autocast("cpu", dtype=torch.float16):
            return float(
                Attack(0.1)
                .perturb(BareForward(model), images, labels, criterion, torch.Generator())
                .zero_share
            )

    assert share(many) < 0.01
    assert share(lambda outputs, labels: outputs.sum() * 0.0) == 1.0


class Ends(nn.Module):
    """A network whose last layer leaves fp16, or whose outputs are a structure."""

    def __init__(self, body, end):
        super().__init__()
        self.body, self.end = body, end

    def forward(self, x):
        x = self.body(x)
        if self.end == "float32":
            return x.float()
        return {"logits": x, "auxiliary": (x * 2, None), "count": torch.ones(3).long()}


@pytest.mark.parametrize("end", ["float32", "structure"])
def test_outputs_that_are_not_one_fp16_tensor(problem, end):
    model, images, labels = problem
    model = Ends(model, end)

    def criterion(outputs, labels):
        if end == "float32":
            return tiny(outputs, labels)
        main, auxiliary = outputs["logits"], outputs["auxiliary"][0]
        return tiny(main, labels) + 0.5 * tiny(auxiliary, labels)

    exact = signs(model, images, labels, criterion, None)
    half = signs(model, images, labels, criterion, torch.float16)
    assert float((half == exact).float().mean()) > 0.98


def test_a_network_in_fp16_without_autocast(problem):
    model, images, labels = problem
    exact = signs(model, images.half().float(), labels, tiny, None)
    half = signs(model.half(), images.half(), labels, tiny, None)
    assert half.dtype == torch.float16
    assert float((half == exact).float().mean()) > 0.97


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_other_precisions_are_left_alone(problem, precision):
    images = torch.rand(4, 3)
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        outputs = nn.Linear(3, 2)(images)
        same, factor = lift_output_gradient(outputs, images)
    assert same is outputs
    assert factor == 1.0


def test_the_factor_is_an_exact_power_of_two():
    sizes = torch.tensor([1e-37, 3e-20, 1e-7, 0.3, 8.0, 15.9, 16.0, 16.1, 60000.0, 1e30])
    factors = power_of_two(sizes)
    mantissa, _ = torch.frexp(factors)
    assert torch.equal(mantissa, torch.full_like(sizes, 0.5))
    scaled = sizes.double() * factors.double()
    assert ((scaled >= 8) & (scaled < 16)).all()
    for useless in (0.0, float("inf"), float("nan")):
        assert power_of_two(torch.tensor(useless)).item() == 1.0


def test_one_factor_for_all_images_and_outputs():
    """Relative sizes survive to the last bit, between images and between outputs."""
    first = torch.randn(4, 3, dtype=torch.float16, requires_grad=True)
    second = torch.randn(4, 2, dtype=torch.float16, requires_grad=True)
    weights = torch.randn(4, 3) * 1e-9, torch.randn(4, 2) * 1e-9
    (one, two), factor = lift_output_gradient((first, second), torch.rand(4, 1))
    assert one.dtype == two.dtype == torch.float32
    loss = (one * weights[0]).sum() + (two * weights[1]).sum()
    got = torch.autograd.grad(loss * factor, (first, second))
    largest = max(w.abs().max() for w in weights) * factor
    scale = power_of_two(largest) * factor
    for gradient, weight in zip(got, weights, strict=True):
        assert torch.equal(gradient, (weight * scale).half())

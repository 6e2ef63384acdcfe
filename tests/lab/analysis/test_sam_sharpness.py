"""SAM-sharpness of a quadratic: rho |g| + rho^2 / 2 * u'Hu, exactly."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import conadv
from conadv.lab.analysis import sam_sharpness
from support.nets import conv_net, perturb_norms
from support.ragged import ragged

RADII = (0.0, 0.01, 0.1, 1.0, 10.0)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets, reduction="sum") / (2 * len(outputs))


def test_a_quadratic() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    weight = model.weight.detach().clone()
    residual = inputs @ weight.T - targets
    gradient = (inputs.T @ residual / 50).flatten()
    along = gradient / gradient.norm()
    curvature = along @ (inputs.T @ inputs / 50) @ along
    found = sam_sharpness(model, ragged(inputs, targets), half_square, radii=RADII)
    assert found.loss == pytest.approx(float((residual**2).mean() / 2), rel=1e-12)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert found.images == 50
    for radius, point in zip(RADII, found.points, strict=True):
        exact = radius * gradient.norm() + radius**2 / 2 * curvature
        assert point.radius == radius
        assert point.sharpness == pytest.approx(float(exact), rel=1e-9, abs=1e-12)
        assert point.loss == pytest.approx(found.loss + point.sharpness, rel=1e-12)
    assert torch.equal(model.weight, weight) and model.weight.grad is None


def test_it_is_a_lower_bound_of_the_worst_point_found_by_search() -> None:
    """And on a quadratic with a gradient along the top eigenvector it is the worst point."""
    inputs = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)) * 2**0.5
    targets = inputs @ torch.tensor([[-1.0], [0.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    [point] = sam_sharpness(model, [(inputs, targets)], half_square, radii=[0.3]).points
    angles = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
    steps = 0.3 * torch.stack([angles.cos(), angles.sin()])
    losses = ((inputs @ steps - targets) ** 2).mean(dim=0) / 2
    assert point.loss == pytest.approx(float(losses.max()), rel=1e-4)


def test_a_minimum_has_none() -> None:
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    batches = [(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64))]
    found = sam_sharpness(model, batches, half_square, radii=[0.1])
    assert found.gradient_norm == 0 and found.points[0].sharpness == 0


def test_a_split_network_is_left_as_it_was_and_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    model = perturb_norms(conadv.split_norms(conv_net())).double()
    images = torch.randn(20, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, 5, (20,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    whole = sam_sharpness(model, [(images, labels)], radii=[0.1])
    cut = sam_sharpness(model, ragged(images, labels), radii=[0.1])
    other = sam_sharpness(model, [(images, labels)], radii=[0.1], branch="adversarial")
    assert cut.points[0].sharpness == pytest.approx(whole.points[0].sharpness, rel=1e-9)
    assert other.points[0].sharpness != pytest.approx(whole.points[0].sharpness, rel=1e-3)
    assert whole.points[0].sharpness > 0
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("radii", [[], [-0.1], [float("inf")], [float("nan")]])
def test_bad_radii(radii: list[float]) -> None:
    with pytest.raises(ValueError, match="finite number, 0 or more"):
        sam_sharpness(nn.Linear(2, 2), [(torch.ones(1, 2), torch.tensor([0]))], radii=radii)

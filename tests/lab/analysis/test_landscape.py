"""Filter-normalised directions and landscapes, on losses that are known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import conadv
from conadv.lab.analysis import filter_normalised_direction, landscape_line, landscape_plane
from conadv.lab.analysis.landscape import positions
from support.nets import conv_net, perturb_norms
from support.ragged import ragged


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets, reduction="sum") / (2 * len(outputs))


def test_every_filter_has_the_norm_of_the_models_filter() -> None:
    torch.manual_seed(0)
    model = perturb_norms(conv_net())
    direction = filter_normalised_direction(model, seed=3)
    assert set(direction) == {name for name, _ in model.named_parameters()}
    moved = 0
    for name, weight in model.named_parameters():
        drawn = direction[name]
        assert drawn.shape == weight.shape
        if weight.ndim == 1:
            assert not drawn.any()
            continue
        for filter_, own in zip(drawn, weight, strict=True):
            assert filter_.norm().item() == pytest.approx(own.norm().item(), rel=1e-5)
            moved += 1
    assert moved == 6 + 4 + 8 + 5
    same, other = (filter_normalised_direction(model, seed=s)["0.weight"] for s in (3, 4))
    assert torch.equal(same, direction["0.weight"])
    assert not torch.allclose(other, direction["0.weight"])


def test_a_filter_of_zeros_is_not_moved() -> None:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[1] = 0
    direction = filter_normalised_direction(model, 0)["weight"]
    assert direction[0].norm() > 0 and not direction[1].any()


def test_directions_do_not_depend_on_the_scale_of_a_filter() -> None:
    """The point of the normalisation: batch norm undoes the scale, and the landscape stays."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten()).eval()
    images, labels = torch.randn(9, 1, 4, 4), torch.randint(0, 12, (9,))
    before = landscape_line(model, [(images, labels)], at=(-0.5, 0, 0.5))
    with torch.no_grad():
        factor = torch.tensor([2.0, 0.5, 8.0])
        model[0].weight.mul_(factor.view(3, 1, 1, 1))
        model[1].running_mean.mul_(factor)
        model[1].running_var.mul_(factor**2)
        model[1].eps = 1e-30  # none to speak of; some releases of torch refuse 0
    after = landscape_line(model, [(images, labels)], at=(-0.5, 0, 0.5))
    assert after.losses == pytest.approx(before.losses, rel=1e-3)


def regression():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    model = nn.Linear(5, 2, dtype=torch.float64)
    return model, ragged(inputs, targets), inputs, targets


def test_a_line_through_a_quadratic_is_a_parabola() -> None:
    """L(w + a d) = L + a g'd + a^2 / 2 d'Hd, from the direction itself; the bias stays."""
    model, batches, inputs, targets = regression()
    at = positions(2.0, 5)
    found = landscape_line(model, batches, half_square, at=at, seed=7)
    d = filter_normalised_direction(model, 7)["weight"]
    residual = model(inputs).detach() - targets
    shift = inputs @ d.T
    for a, loss in zip(at, found.losses, strict=True):
        exact = ((residual + a * shift) ** 2).sum() / 80
        assert loss == pytest.approx(float(exact), rel=1e-12)
    assert at == (-2.0, -1.0, 0.0, 1.0, 2.0)
    assert found.images == 40 and found.accuracies == (None,) * 5


def test_a_plane_has_its_lines_on_its_axes() -> None:
    model, batches, inputs, targets = regression()
    xs, ys = (-1.0, 0.0, 1.0), (-0.5, 0.0)
    seen: list[tuple[int, int | None]] = []
    plane = landscape_plane(
        model,
        batches,
        half_square,
        xs=xs,
        ys=ys,
        seeds=(7, 8),
        progress=lambda *now: seen.append(now),
    )
    assert seen == [(i, 6) for i in range(1, 7)]
    line = landscape_line(model, batches, half_square, at=xs, seed=7)
    assert plane.losses[1] == line.losses
    line = landscape_line(model, batches, half_square, at=ys, seed=8)
    assert [row[1] for row in plane.losses] == list(line.losses)
    d, e = (filter_normalised_direction(model, s)["weight"] for s in (7, 8))
    corner = model(inputs).detach() - targets + inputs @ (1.0 * d - 0.5 * e).T
    assert plane.losses[0][2] == pytest.approx(float((corner**2).sum() / 80), rel=1e-12)


def test_accuracy_branches_and_nothing_left_behind() -> None:
    torch.manual_seed(0)
    model = perturb_norms(conadv.split_norms(conv_net()))
    images, labels = torch.randn(20, 3, 8, 8), torch.randint(0, 5, (20,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clean, other = (
        landscape_line(model, [(images, labels)], at=(0.0, 0.3), branch=b)
        for b in ("clean", "adversarial")
    )
    assert clean.losses[0] != other.losses[0] and clean.losses[0] != clean.losses[1]
    with torch.no_grad():
        right = conadv.plain(model).eval()(images).argmax(dim=1) == labels
    assert clean.accuracies[0] == int(right.sum()) / 20
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_arguments() -> None:
    model, batches = nn.Linear(2, 2), [(torch.ones(1, 2), torch.tensor([0]))]
    for points in (0, 1, 4):
        with pytest.raises(ValueError, match="odd number, 3 or more"):
            positions(1.0, points)
    with pytest.raises(ValueError, match="above 0"):
        positions(0.0, 3)
    with pytest.raises(ValueError, match="at least one, all of them finite"):
        landscape_line(model, batches, at=())
    with pytest.raises(ValueError, match="not a plane"):
        landscape_plane(model, batches, xs=(0.0,), ys=(0.0,), seeds=(1, 1))
    with pytest.raises(ValueError, match="once only"):
        landscape_line(model, iter(batches), at=(0.0,))

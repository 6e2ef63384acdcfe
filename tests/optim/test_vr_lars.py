"""Variance-reduced gradients against the equations of arXiv 2309.13681 written out in numpy."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from conadv.optim import LARS, VarianceReduction

SHAPES = ((4, 3), (5,), ())


def group_gradients(step: int, k: int = 4) -> list[list[np.ndarray]]:
    """Gradients of k groups for each parameter, with a common signal."""
    rng = np.random.default_rng(step)
    found = []
    for _ in range(k):
        found.append([])
    for shape in SHAPES:
        signal = rng.normal(size=shape)
        for part in found:
            part.append(signal + rng.normal(size=shape))
    return found


def scale(gradients: list[np.ndarray], gamma: float) -> np.ndarray:
    """The ratio r of one layer from the gradients of the groups."""
    g = np.mean(gradients, axis=0)
    variance = np.mean(np.square(gradients), axis=0) - g**2
    r = g**2 / variance
    r = r / r.mean()
    return np.minimum(np.maximum(r, gamma), 1.0)


def parameters() -> list[nn.Parameter]:
    rng = np.random.default_rng(99)
    return [nn.Parameter(torch.from_numpy(np.asarray(rng.normal(size=s)))) for s in SHAPES]


def backward(
    params: list[nn.Parameter],
    reduction: VarianceReduction,
    groups: list[list[np.ndarray]],
    weights: list[float] | None = None,
) -> None:
    """Backward passes whose gradients are the given ones, as means over the groups."""
    weights = weights or [1 / len(groups)] * len(groups)
    for gradients, weight in zip(groups, weights, strict=True):
        loss = sum(
            (p * torch.from_numpy(np.asarray(g))).sum()
            for p, g in zip(params, gradients, strict=True)
        )
        with reduction.group(weight):
            (weight * loss).backward()


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_the_scale_is_that_of_the_paper(gamma: float) -> None:
    params = parameters()
    reduction = VarianceReduction(params, gamma)
    groups = group_gradients(0)
    backward(params, reduction, groups)
    reduction.scale_gradients()
    for index, p in enumerate(params):
        own = [np.asarray(g[index]) for g in groups]
        expected = scale(own, gamma) * np.mean(own, axis=0)
        np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-9)


def test_vr_lars_step_by_step() -> None:
    """LARS in the form of the recipes, its gradient scaled: all of it in numpy."""
    lr, m, decay, trust = 0.5, 0.9, 0.1, 0.01
    params = parameters()
    w = [p.detach().numpy().copy() for p in params]
    v = [np.zeros_like(x) for x in w]
    optimizer = LARS(params, lr=lr, momentum=m, weight_decay=decay, trust_coefficient=trust)
    reduction = VarianceReduction(params)
    for step in range(4):
        groups = group_gradients(step)
        backward(params, reduction, groups)
        reduction.scale_gradients()
        optimizer.step()
        optimizer.zero_grad()
        for i in range(len(w)):
            own = [np.asarray(g[i]) for g in groups]
            g = scale(own, 0.1) * np.mean(own, axis=0)
            size = np.linalg.norm(np.ravel(w[i]))
            ratio = trust * size / (np.linalg.norm(np.ravel(g)) + decay * size)
            v[i] = m * v[i] + lr * ratio * (g + decay * w[i])
            w[i] = w[i] - v[i]
    for p, expected in zip(params, w, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-7)


def test_momentum_of_the_ratio_is_bias_corrected() -> None:
    params = parameters()
    reduction = VarianceReduction(params, momentum=0.8)
    average = [np.zeros(s) for s in SHAPES]
    for step in range(3):
        groups = group_gradients(step)
        for p in params:
            p.grad = None
        backward(params, reduction, groups)
        reduction.scale_gradients()
        for i, p in enumerate(params):
            own = [np.asarray(g[i]) for g in groups]
            average[i] = 0.8 * average[i] + 0.2 * scale(own, 0.1)
            expected = average[i] / (1 - 0.8 ** (step + 1)) * np.mean(own, axis=0)
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-9)


def test_groups_of_different_sizes_count_by_their_weight() -> None:
    """A group of weight 2 counts as two groups with its gradient."""
    groups = group_gradients(3, k=3)
    weighted, repeated = parameters(), parameters()
    a, b = VarianceReduction(weighted), VarianceReduction(repeated)
    backward(weighted, a, groups, [0.5, 0.25, 0.25])
    backward(repeated, b, [groups[0], *groups])
    a.scale_gradients()
    b.scale_gradients()
    for p, q in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=0)


def test_ranks_sum_what_one_device_accumulates() -> None:
    groups = group_gradients(5)
    alone = parameters()
    reduction = VarianceReduction(alone)
    backward(alone, reduction, groups)
    reduction.scale_gradients()

    handed: list[torch.Tensor] = []
    ranks = [parameters(), parameters()]
    for params, own in zip(ranks, (groups[:1], groups[1:]), strict=True):
        first = VarianceReduction(params, all_reduce=lambda flat: handed.append(flat.clone()))
        backward(params, first, own, [1.0] * len(own))
        first._joined()
    total = handed[0] + handed[1]
    for params in ranks:
        other = VarianceReduction(params, all_reduce=lambda flat: flat.copy_(total))
        mean = [np.mean([np.asarray(g[i]) for g in groups], axis=0) for i in range(len(SHAPES))]
        for p, g in zip(params, mean, strict=True):
            p.grad = torch.from_numpy(np.asarray(g))
        other.scale_gradients()
        for p, q in zip(params, alone, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)  # squares in float32


def test_groups_that_agree_and_zero_gradients_stay_finite() -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    reduction = VarianceReduction(params)
    for _ in range(2):
        with reduction.group(0.5):
            (
                0.5 * (params[0] * torch.tensor([1.0, 1.0, 0.0])).sum() + 0 * params[1].sum()
            ).backward()
    reduction.scale_gradients()
    # Two values of the highest ratio there is and one of 0: the mean is 2/3 of the highest.
    torch.testing.assert_close(params[0].grad, torch.tensor([1.0, 1.0, 0.0]))
    assert torch.equal(params[1].grad, torch.zeros(2))


def test_passes_outside_of_a_group_do_not_count() -> None:
    groups = group_gradients(7)
    params, others = parameters(), parameters()
    reduction, other = VarianceReduction(params), VarianceReduction(others)
    sum((p * 5).sum() for p in params).backward()
    for p in params:
        p.grad = None
    backward(params, reduction, groups)
    backward(others, other, groups)
    reduction.scale_gradients()
    other.scale_gradients()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, others, strict=True))


def test_state_goes_on_bit_for_bit_through_a_safe_file() -> None:
    params, others = parameters(), parameters()
    reduction, other = (VarianceReduction(x, momentum=0.9) for x in (params, others))
    backward(params, reduction, group_gradients(0))
    reduction.scale_gradients()
    file = io.BytesIO()
    torch.save(reduction.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for own, found in ((params, reduction), (others, other)):
        for p in own:
            p.grad = None
        backward(own, found, group_gradients(1))
        found.scale_gradients()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, others, strict=True))


def test_misuse_is_named() -> None:
    params = parameters()
    for setting, message in (
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"momentum": 1.0}, "momentum=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            VarianceReduction(params, **setting)
    with pytest.raises(ValueError, match="no parameters"):
        VarianceReduction([])
    reduction = VarianceReduction(params)
    with pytest.raises(ValueError, match="weight=0"), reduction.group(0):
        pass
    backward(params, reduction, group_gradients(0)[:1])
    with pytest.raises(RuntimeError, match="saw 1 group in this step"):
        reduction.scale_gradients()

"""The mean over images and copies, and the sum that the paper prints: what each is the same as."""

import copy

import pytest
import torch
from torch import nn

import conadv
from conadv.optim import LARS, param_groups

IMAGES, LABELS = torch.randn(8, 3, 6, 6), torch.randint(4, (8,))
ATTACK = conadv.Attack(4 / 255, mean=0.5, std=0.25)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ).double()


def adversary(model: nn.Module, loss: str, schedule: conadv.Sequential) -> conadv.Adversary:
    return conadv.Adversary(model, ATTACK, schedule, loss=loss)  # type: ignore[arg-type]


def step(model: nn.Module, loss: str, optimizer: torch.optim.Optimizer, count: int = 1) -> None:
    makes_copies = adversary(model, loss, conadv.Sequential())
    for _ in range(count):
        optimizer.zero_grad()
        makes_copies.loss(IMAGES.double(), LABELS, nn.functional.cross_entropy).backward()
        makes_copies.collect()
        optimizer.step()


@pytest.mark.parametrize(("loss", "share"), [("mean", 0.5), ("sum", 1.0)])
def test_the_clean_branch_has_half_of_vanillas_gradient_in_a_mean(loss: str, share: float) -> None:
    ordinary = network()
    nn.functional.cross_entropy(ordinary(IMAGES.double()), LABELS).backward()
    model = conadv.split_norms(network())
    step(model, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    branch = model[1].norms["clean"]
    for own, plain in zip(branch.parameters(), ordinary[1].parameters(), strict=True):
        assert plain.grad is not None and plain.grad.abs().max() > 1e-4
        torch.testing.assert_close(own.grad, share * plain.grad)


def lars(model: nn.Module, weight_decay: float) -> LARS:
    return LARS(param_groups(model, weight_decay), lr=1.0, momentum=0.9)


def test_in_adapted_layers_the_sum_is_the_mean_at_half_the_weight_decay() -> None:
    mean, total, same_decay = (conadv.split_norms(network()) for _ in range(3))
    step(mean, "mean", lars(mean, 0.05))
    step(total, "sum", lars(total, 0.1))
    step(same_decay, "sum", lars(same_decay, 0.05))
    start = network()
    for layer in (0, 4):  # those that LARS adapts
        torch.testing.assert_close(total[layer].weight, mean[layer].weight, rtol=1e-9, atol=0)
        moved = (mean[layer].weight - start[layer].weight).abs().max()
        apart = (same_decay[layer].weight - mean[layer].weight).abs().max()
        assert apart > 1e-3 * moved
    # Bias and norm are neither adapted nor decayed: there the sum is twice the rate.
    moved_by_mean = mean[4].bias - start[4].bias
    torch.testing.assert_close(total[4].bias - start[4].bias, 2 * moved_by_mean)


@pytest.mark.parametrize("weight", [None, 0.25])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_images_own_loss_is_whole_in_a_sum(weight: float | None, share: float) -> None:
    model = conadv.split_norms(network())
    made = adversary(model, "sum", conadv.Sequential(share=share, weight=weight))
    loss = made.loss(IMAGES.double(), LABELS, nn.functional.cross_entropy)
    seen = made.diagnostics
    assert seen.clean_loss is not None and seen.adversarial_loss is not None
    factor = share if weight is None else weight / (1 - weight)
    torch.testing.assert_close(loss.detach(), seen.clean_loss + factor * seen.adversarial_loss)


def test_ordinary_training_is_its_own_sum() -> None:
    model = conadv.split_norms(network())
    losses = [
        conadv.Adversary(copy.deepcopy(model), ATTACK, "vanilla", loss=loss).loss(  # type: ignore[arg-type]
            IMAGES.double(), LABELS, nn.functional.cross_entropy
        )
        for loss in ("mean", "sum")
    ]
    assert torch.equal(*losses)


def test_what_cannot_be_a_sum_is_refused() -> None:
    model = conadv.split_norms(network())
    with pytest.raises(ValueError, match="allowed are 'mean' and 'sum'"):
        adversary(model, "total", conadv.Sequential())
    with pytest.raises(ValueError, match="loss='mean'"):
        adversary(model, "sum", conadv.Sequential()).mix(IMAGES.double(), LABELS)
    whole = adversary(model, "sum", conadv.Sequential(weight=1.0))
    with pytest.raises(ValueError, match="a weight below 1"):
        whole.loss(IMAGES.double(), LABELS, nn.functional.cross_entropy)

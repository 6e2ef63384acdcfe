"""Robust accuracy against closed form: a linear classifier's robust set is known exactly."""

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.trainer.evaluation.robustness import robust_accuracy

EPSILON = 0.1


class Linear(nn.Module):
    """Two logits, linear in the pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], 2)
        with torch.no_grad():
            self.layer.weight.copy_(weight)
            self.layer.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def _linear_case() -> tuple[Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 12, generator=generator)
    images = torch.rand(200, 3, 2, 2, generator=generator) * 0.6 + 0.2  # no clipping within 0.1
    labels = torch.randint(0, 2, (200,), generator=generator)
    difference = weight[0] - weight[1]
    margin = (images.flatten(1) @ difference) * (1 - 2 * labels)
    return Linear(weight), images, labels, margin


@pytest.mark.parametrize(
    "attack",
    [
        conadv.Attack(EPSILON),
        conadv.Attack(EPSILON, steps=5, random_start=1.0),
        conadv.Attack(EPSILON, steps=3, step_size=EPSILON),
    ],
    ids=["fgsm", "pgd", "pgd-full-steps"],
)
def test_linear_model_has_the_known_robust_accuracy(attack: conadv.Attack) -> None:
    model, images, labels, margin = _linear_case()
    reach = EPSILON * (model.layer.weight[0] - model.layer.weight[1]).abs().sum()
    clean, robust = int((margin > 0).sum()), int((margin > reach).sum())
    assert 0 < robust < clean < 200
    found = robust_accuracy(model, zip(images.split(64), labels.split(64), strict=True), attack)
    assert (found.images, found.correct, found.robust) == (200, clean, robust)
    assert found.robust_accuracy == robust / 200


def test_pixel_units_are_independent_of_standardisation() -> None:
    model, images, labels, _ = _linear_case()
    mean, std = (0.3, 0.5, 0.4), (0.2, 0.25, 0.3)
    shape = (1, 3, 1, 1)

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape))

    standard = (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    raw = robust_accuracy(model, [(images, labels)], conadv.Attack(EPSILON))
    scaled = robust_accuracy(
        Standardised(), [(standard, labels)], conadv.Attack(EPSILON, mean=mean, std=std)
    )
    assert (raw.correct, raw.robust) == (scaled.correct, scaled.robust)


class Bumps(nn.Module):
    """Right everywhere but in a narrow band that a gradient step from the image jumps over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, 0] * self.scale
        wrong = 1 - ((x - 0.56).abs() / 0.02)
        return torch.stack([torch.zeros_like(x), wrong], dim=1)


def test_restarts_find_what_one_start_misses() -> None:
    images = torch.full((40, 1, 1, 1), 0.5)
    labels = torch.zeros(40, dtype=torch.int64)
    attack = conadv.Attack(EPSILON, steps=1, step_size=1e-3, random_start=1.0)
    once = robust_accuracy(Bumps(), [(images, labels)], attack)
    often = robust_accuracy(Bumps(), [(images, labels)], attack, restarts=10)
    assert once.correct == often.correct == 40
    assert often.robust < once.robust < 40


def test_branches_and_nothing_left_behind() -> None:
    model = conadv.split_norms(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    )
    with torch.no_grad():
        model[1].norms["adversarial"].weight.fill_(0.0)  # this branch answers with a constant
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = torch.get_rng_state()
    images, labels = torch.rand(20, 3, 4, 4), torch.zeros(20, dtype=torch.int64)
    stream = torch.get_rng_state()
    attack = conadv.Attack(EPSILON, steps=2, random_start=1.0)
    constant = robust_accuracy(model, [(images, labels)], attack, branch="adversarial")
    assert constant.correct == constant.robust  # no input moves a constant
    clean = robust_accuracy(model, [(images, labels)], attack, branch="clean")
    assert clean.correct != constant.correct or clean.robust != constant.robust
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_image_is_judged_alike_in_any_batch() -> None:
    model = conadv.split_norms(nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Flatten()))
    images, labels = torch.rand(30, 3, 4, 4), torch.randint(0, 4, (30,))
    attack = conadv.Attack(EPSILON)
    whole = robust_accuracy(model, [(images, labels)], attack)
    cut = robust_accuracy(model, zip(images.split(7), labels.split(7), strict=True), attack)
    assert whole == cut


def test_bad_arguments() -> None:
    model, images, labels, _ = _linear_case()
    with pytest.raises(ValueError, match="at least one"):
        robust_accuracy(model, [(images, labels)], conadv.Attack(EPSILON), restarts=0)
    with pytest.raises(ValueError, match="random start"):
        robust_accuracy(model, [(images, labels)], conadv.Attack(EPSILON), restarts=2)
    with pytest.raises(ValueError, match="no images"):
        robust_accuracy(model, [], conadv.Attack(EPSILON))
    with pytest.raises(ValueError, match="branches are"):
        split = conadv.split_norms(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)))
        robust_accuracy(split, [(images, labels)], conadv.Attack(EPSILON), branch="advers")

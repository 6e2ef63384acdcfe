"""The generalisation gap against sums by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import conadv
from conadv.lab.analysis import Score, generalisation_gap
from support.nets import conv_net, perturb_norms


def logits_of(pixels: list[float]) -> torch.Tensor:
    """Images of one pixel; the model below returns (pixel, 0)."""
    return torch.tensor(pixels).view(-1, 1)


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images * self.scale, torch.zeros_like(images)], dim=1)


def test_by_hand() -> None:
    """Logits (z, 0): loss log(1 + exp(-z)) for class 0, log(1 + exp(z)) for class 1."""
    train = [
        (logits_of([2.0, -1.0, 3.0]), torch.tensor([0, 0, 0])),  # right, wrong, right
        (logits_of([1.0]), torch.tensor([0])),  # right
    ]
    test = [(logits_of([2.0, 2.0]), torch.tensor([0, 1]))]  # right, wrong
    found = generalisation_gap(Identity(), train, test)
    losses = [math.log1p(math.exp(-z)) for z in (2.0, -1.0, 3.0, 1.0)]
    assert found.train.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert (found.train.accuracy, found.train.images) == (0.75, 4)
    tested = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    assert found.test == Score(pytest.approx(tested, rel=1e-6), 0.5, 2)
    assert found.accuracy_gap == 0.25
    assert found.loss_gap == pytest.approx(tested - sum(losses) / 4, rel=1e-6)


def test_eval_mode_through_the_branch_that_was_asked_for() -> None:
    torch.manual_seed(0)
    model = perturb_norms(conadv.split_norms(conv_net()))
    images, labels = torch.rand(30, 3, 8, 8), torch.randint(0, 5, (30,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for branch in ("clean", "adversarial"):
        with torch.no_grad():
            expected = cross_entropy(conadv.plain(model, branch).eval()(images), labels)
        whole, cut = [(images, labels)], list(zip(images.split(7), labels.split(7), strict=True))
        found = generalisation_gap(model, whole, cut, branch=branch)
        assert found.train.loss == pytest.approx(float(expected), rel=1e-5)
        assert abs(found.loss_gap) < 1e-6 and found.accuracy_gap == 0
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_regression_has_a_loss_gap_only() -> None:
    batches = [(torch.ones(3, 2), torch.zeros(3, 1))]
    found = generalisation_gap(nn.Linear(2, 1), batches, batches, mse_loss)
    assert found.accuracy_gap is None and found.loss_gap == 0


def test_bad_arguments() -> None:
    good = [(logits_of([1.0]), torch.tensor([0]))]
    with pytest.raises(ValueError, match="no images"):
        generalisation_gap(Identity(), good, [])
    with pytest.raises(ValueError, match="mean over the images"):
        generalisation_gap(
            Identity(), good, good, lambda z, y: cross_entropy(z, y, reduction="none").expand(2)
        )
    model = conadv.split_norms(conv_net())
    with pytest.raises(ValueError, match="branches are clean, adversarial"):
        generalisation_gap(model, good, good, branch="advers")

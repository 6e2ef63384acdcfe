"""The curve of a linear classifier: an L-inf attack takes epsilon * |w|_1 of every margin."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import conadv
from conadv.lab.analysis import robustness_curve
from conadv.trainer.evaluation.robustness import robust_accuracy

EPSILONS = (0.0, 0.02, 0.05, 0.1)


def linear():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    with torch.no_grad():
        weight = torch.randn(2, 12, generator=generator)
        model[1].weight.copy_(weight - weight.mean(dim=1, keepdim=True))  # small margins
    images = torch.rand(300, 3, 2, 2, generator=generator) * 0.6 + 0.2  # no clipping within 0.1
    labels = torch.randint(0, 2, (300,), generator=generator)
    difference = (model[1].weight[0] - model[1].weight[1]).detach()
    margin = (images.flatten(1) @ difference) * (1 - 2 * labels)
    return model, images, labels, margin, float(difference.abs().sum())


@pytest.mark.parametrize("steps", [1, 4], ids=["fgsm", "pgd"])
def test_linear_classifier(steps: int) -> None:
    model, images, labels, margin, reach = linear()
    attack = conadv.Attack(0.5, steps=steps, random_start=float(steps > 1))
    batches = list(zip(images.split(128), labels.split(128), strict=True))
    seen: list[tuple[int, int | None]] = []
    found = robustness_curve(
        model, batches, attack, epsilons=EPSILONS, progress=lambda *now: seen.append(now)
    )
    exact = [int((margin > epsilon * reach).sum()) / 300 for epsilon in EPSILONS]
    assert found.accuracies == tuple(exact)
    assert exact[0] > exact[1] > exact[2] > exact[3]
    assert found.clean_accuracy == found.accuracies[0]
    assert (found.epsilons, found.steps, found.images) == (EPSILONS, steps, 300)
    assert seen == [(i, 4) for i in range(1, 5)]


def test_the_loss_rises_by_epsilon_times_the_one_norm() -> None:
    """Of a two-class linear classifier the loss is softplus(-margin), margins fall by e |w|_1."""
    model, images, labels, margin, reach = linear()
    copies = conadv.Attack(0.05)(model, images, labels, nn.functional.cross_entropy)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(copies), labels, reduction="none")
    torch.testing.assert_close(loss, softplus(0.05 * reach - margin), rtol=1e-4, atol=1e-5)


def test_a_step_size_of_the_attack_given_does_not_stay() -> None:
    model, images, labels, *_ = linear()
    small = conadv.Attack(0.1, step_size=1e-4)
    [found] = robustness_curve(model, [(images, labels)], small, epsilons=[0.1]).accuracies
    expected = robust_accuracy(model, [(images, labels)], conadv.Attack(0.1))
    assert found == expected.robust_accuracy


def test_branches() -> None:
    model = conadv.split_norms(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)))
    with torch.no_grad():
        model[1].norms["adversarial"].weight.zero_()  # this branch answers with a constant
    _, images, labels, *_ = linear()
    curves = [
        robustness_curve(
            model, [(images, labels)], conadv.Attack(0.1), epsilons=(0.0, 0.1), branch=branch
        )
        for branch in ("clean", "adversarial")
    ]
    assert curves[0].accuracies[1] < curves[0].accuracies[0]
    assert curves[1].accuracies[1] == curves[1].accuracies[0] == curves[1].clean_accuracy
    assert [curve.branch for curve in curves] == ["clean", "adversarial"]


def test_bad_arguments() -> None:
    model, images, labels, *_ = linear()
    with pytest.raises(ValueError, match="at least one radius"):
        robustness_curve(model, [(images, labels)], conadv.Attack(0.1), epsilons=())
    with pytest.raises(ValueError, match="did you mean"):
        robustness_curve(model, [(images, labels)], conadv.Attack(0.1), epsilons=[4])
    with pytest.raises(ValueError, match="once only"):
        robustness_curve(model, iter([(images, labels)]), conadv.Attack(0.1))

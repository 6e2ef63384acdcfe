"""Random wrong classes: uniform, never the true one, in the form of the labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conadv import Attack
from conadv.attack.targets import random_wrong_labels


def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(75, 5))


def goals(labels, outputs_shape=(0, 5), draws=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.zeros(len(labels), *outputs_shape[1:])
    return torch.cat([random_wrong_labels(labels, outputs, generator) for _ in range(draws)])


def test_targeted_steps_descend_towards_a_wrong_class():
    images = torch.rand(8, 3, 5, 5)
    labels = torch.arange(8) % 5
    model, seen = classifier(), []

    def criterion(outputs, goal):
        seen.append(goal)
        return F.cross_entropy(outputs, goal)

    copies = Attack(4 / 255, target="random")(model, images, labels, criterion)
    (goal,) = seen
    assert (goal != labels).all()
    with torch.no_grad():
        before = F.cross_entropy(model(images), goal, reduction="none")
        after = F.cross_entropy(model(copies), goal, reduction="none")
    assert (after < before).all()


def test_the_target_stays_the_same_over_the_steps():
    seen = []

    def criterion(outputs, goal):
        seen.append(goal)
        return F.cross_entropy(outputs, goal)

    images = torch.rand(8, 3, 5, 5)
    attack = Attack(4 / 255, target="random", steps=3)
    attack(classifier(), images, torch.zeros(8, dtype=torch.long), criterion)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_wrong_classes_are_uniform_and_never_the_true_one():
    labels = torch.full((8000,), 3)
    counts = torch.bincount(goals(labels), minlength=5)
    assert counts[3] == 0
    wrong = counts[[0, 1, 2, 4]].float()
    assert ((wrong - 2000).square() / 2000).sum() < 20  # chi-square, 3 degrees of freedom


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_integer_labels_keep_their_type_and_shape(dtype):
    goal = goals(torch.arange(5).to(dtype))
    assert goal.dtype == dtype
    assert (goal != torch.arange(5)).all()


def test_ignored_pixels_stay_ignored():
    labels = torch.randint(0, 5, (2, 4, 4))
    labels[:, 0], labels[:, 1] = 255, -100
    goal = goals(labels, (0, 5, 4, 4))
    assert (goal[:, 0] == 255).all()
    assert (goal[:, 1] == -100).all()
    assert (goal[:, 2:] != labels[:, 2:]).all()
    assert goal[:, 2:].max() < 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_avoid_both_of_a_mixed_pair(smoothing):
    hard = F.one_hot(torch.tensor([0, 1]), 5).float() * (1 - smoothing) + smoothing / 5
    mixed = (0.6 * hard[:1] + 0.4 * hard[1:]).expand(3000, 5)
    goal = goals(mixed)
    assert goal.dtype == mixed.dtype
    assert torch.equal(goal.sum(dim=1), torch.ones(3000))
    counts = goal.sum(dim=0)
    assert counts[:2].tolist() == [0, 0]
    assert ((counts[2:] - 1000).square() / 1000).sum() < 15


def test_soft_labels_per_pixel():
    labels = F.one_hot(torch.randint(0, 5, (2, 4, 4)), 5).movedim(-1, 1).float()
    goal = goals(labels, (0, 5, 4, 4))
    assert goal.shape == labels.shape
    assert torch.equal(goal.sum(dim=1), torch.ones(2, 4, 4))
    assert float((goal * labels).sum()) == 0


def test_every_class_true_still_gives_one():
    goal = goals(torch.ones(4, 5))
    assert torch.equal(goal.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(torch.zeros(3), 5), (torch.zeros(3, 4), 5), ((1, 2), 5), (torch.zeros(3).long(), 1)],
)
def test_labels_that_have_no_wrong_class_are_refused(labels, classes):
    with pytest.raises(ValueError, match="target='random'"):
        goals(labels, (0, classes))

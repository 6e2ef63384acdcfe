"""Every argument that an attack refuses, and what it says then."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conadv import Attack


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 8}, "did you mean epsilon=8/255"),
        ({"epsilon": 8, "norm": "linf", "mean": 0.5, "std": 0.25}, "grey levels"),
        ({"epsilon": 0.1, "step_size": 2.0}, "did you mean step_size=2/255"),
        ({"epsilon": 300, "pixel_range": (0, 255)}, "wider than the pixel range"),
        ({"epsilon": -0.1}, "0 or more"),
        ({"epsilon": math.nan}, "finite"),
        ({"epsilon": math.inf}, "finite"),
        ({"epsilon": "4/255"}, "finite number"),
        ({"epsilon": None}, "finite number"),
        ({"norm": "l1"}, "linf, l2"),
        ({"steps": 0}, "at least one"),
        ({"steps": 1.5}, "whole number"),
        ({"step_size": 0.0}, "above 0"),
        ({"step_size": -0.1}, "above 0"),
        ({"step_size": math.inf, "norm": "l2"}, "finite"),
        ({"step_size": math.nan}, "finite"),
        ({"random_start": -0.1}, "probability"),
        ({"random_start": 1.1}, "probability"),
        ({"random_start": math.nan}, "probability"),
        ({"target": "least_likely"}, "None and 'random'"),
        ({"mode": "both"}, "'train' and 'eval'"),
        ({"mean": (0.5,)}, "together"),
        ({"std": (0.5,)}, "together"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2)}, "mean has 3 values and std 2"),
        ({"mean": (0.5,), "std": (0.0,)}, "above 0"),
        ({"mean": 0.5, "std": -1.0}, "above 0"),
        ({"mean": (0.5,), "std": (math.nan,)}, "finite"),
        ({"mean": (math.inf,), "std": (1.0,)}, "finite"),
        ({"mean": "imagenet", "std": "imagenet"}, "one number per channel"),
        ({"mean": (), "std": ()}, "finite number"),
        ({"pixel_range": (0, 0)}, "low < high"),
        ({"pixel_range": (1, 0)}, "low < high"),
        ({"pixel_range": (0, math.nan)}, "low < high"),
        ({"pixel_range": (0,)}, "low < high"),
    ],
)
def test_refused_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attack(**{"epsilon": 0.1, **arguments})


def test_the_largest_epsilon_and_a_wide_l2_ball_are_allowed():
    assert Attack(1.0).epsilon == 1.0
    assert Attack(3.0, norm="l2").epsilon == 3.0
    assert Attack(8, pixel_range=(0, 255)).pixel_range == (0.0, 255.0)


@pytest.mark.parametrize(
    "mean",
    [
        [0.5, 0.25],
        (0.5, 0.25),
        torch.tensor([0.5, 0.25]),
        torch.tensor([0.5, 0.25]).reshape(2, 1, 1),
        np.array([0.5, 0.25], dtype=np.float32),
        [np.float32(0.5), np.float64(0.25)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_per_channel_numbers_come_in_any_form(mean):
    attack = Attack(0.1, mean=mean, std=(1.0, 1.0))
    assert attack.mean == (0.5, 0.25)
    assert all(type(value) is float for value in attack.mean)
    assert hash(attack) == hash(Attack(0.1, mean=(0.5, 0.25), std=(1.0, 1.0)))


@pytest.mark.parametrize("mean", [0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_one_number_comes_in_any_form(mean):
    assert Attack(0.1, mean=mean, std=1).mean == 0.5


def call(attack, images, labels=None, criterion=F.cross_entropy, model=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return attack(model or nn.Flatten(), images, labels, criterion)


@pytest.mark.parametrize(
    ("attack", "images", "message"),
    [
        (Attack(0.1), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "uint8.*divide by 255"),
        (Attack(0.1), torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
        (Attack(0.1), [1.0], "list"),
        (Attack(0.1), torch.zeros(0, 3, 4, 4), "N >= 1"),
        (Attack(0.1), torch.zeros(3), "N >= 1"),
        (Attack(0.1, mean=(0.5,), std=(1.0,)), torch.zeros(2, 3, 4, 4), "mean has 1 values.*3"),
        (Attack(0.1, mean=0.5, std=(1.0,)), torch.zeros(2, 3, 4, 4), "std has 1 values.*3"),
    ],
)
def test_refused_images(attack, images, message):
    with pytest.raises(ValueError, match=message):
        call(attack, images, torch.zeros(2, dtype=torch.long))


def test_a_criterion_must_return_one_number():
    def per_image(outputs, labels):
        return F.cross_entropy(outputs, labels, reduction="none")

    with pytest.raises(ValueError, match=r"shape \(2,\).*reduction='mean'"):
        call(Attack(0.1), torch.rand(2, 5), criterion=per_image)
    with pytest.raises(ValueError, match="returned float"):
        call(Attack(0.1), torch.rand(2, 5), criterion=lambda outputs, labels: 1.0)


def test_a_branch_that_the_model_does_not_have():
    import conadv

    model = conadv.split_norms(nn.Sequential(nn.BatchNorm1d(5)))
    with pytest.raises(ValueError, match="clean, adversarial"):
        call(Attack(0.1, branch="noisy"), torch.rand(4, 5), model=model)

"""What an adversary refuses, and that it says what was given and what to do."""

import warnings

import pytest
import torch
from torch import nn

import conadv
from support.loops import ATTACK, CLASSES, MEAN, SCHEDULES, STD, batches, cross_entropy, network

images, labels = batches(1)[0]


def test_a_model_without_parameters() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        conadv.Adversary(nn.ReLU(), ATTACK)


def test_a_model_with_lazy_modules() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.raises(ValueError, match="lazy modules.*run one batch"):
        conadv.Adversary(model, ATTACK)
    model(images)
    conadv.Adversary(model, ATTACK)


@pytest.mark.parametrize("schedule", ["recyled", "", None, conadv.Recycled, 3])
def test_an_unknown_schedule(schedule) -> None:
    with pytest.raises(ValueError, match="allowed are vanilla, sequential, lookahead, recycled"):
        conadv.Adversary(network(), ATTACK, schedule)


def test_a_schedule_object_that_is_in_use() -> None:
    schedule = conadv.Recycled()
    conadv.Adversary(network(), ATTACK, schedule)
    with pytest.raises(ValueError, match="belongs to another Adversary"):
        conadv.Adversary(network(), ATTACK, schedule)


def test_a_refused_schedule_stays_free() -> None:
    schedule = conadv.Recycled()
    with pytest.raises(ValueError, match="mode='eval'"):
        conadv.Adversary(network(), conadv.Attack(0.1, mode="eval"), schedule)
    conadv.Adversary(network(), ATTACK, schedule)


@pytest.mark.parametrize("argument", ["clean_branch", "adversarial_branch"])
def test_an_unknown_branch(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}.*'other'.*clean, adversarial"):
        conadv.Adversary(network(), ATTACK, **{argument: "other"})


def test_an_attack_through_an_unknown_branch() -> None:
    attack = conadv.Attack(0.1, branch="other")
    with pytest.raises(ValueError, match=r"Attack\(branch=...\).*'other'.*clean, adversarial"):
        conadv.Adversary(network(), attack, "sequential")


def test_vanilla_needs_no_adversarial_branch() -> None:
    model = network(branches=("clean",))
    adversary = conadv.Adversary(model, ATTACK, "vanilla")
    adversary.loss(images, labels, cross_entropy).backward()
    with pytest.raises(ValueError, match="adversarial_branch"):
        conadv.Adversary(model, ATTACK, "noise")
    with pytest.raises(ValueError, match="clean_branch"):
        conadv.Adversary(model, ATTACK, "vanilla", clean_branch="other")


@pytest.mark.parametrize("forward", ["both", None, True])
def test_an_unknown_forward(forward) -> None:
    with pytest.raises(ValueError, match="'auto', 'joint' and 'separate'"):
        conadv.Adversary(network(), ATTACK, forward=forward)


@pytest.mark.parametrize("statistics", ["affine", "shared"])
def test_separate_forwards_with_statistics_of_the_mixed_batch(statistics: str) -> None:
    with pytest.raises(ValueError, match=r"forward='separate'.*mixed batch.*forward='joint'"):
        conadv.Adversary(network(statistics=statistics), ATTACK, forward="separate")


def test_batch_norm_that_was_not_split_warns_once_at_the_start() -> None:
    model = network(split=False)
    with pytest.warns(UserWarning, match="2 batch-norm layers.*split_norms"):
        adversary = conadv.Adversary(model, ATTACK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversary.loss(images, labels, cross_entropy)
        conadv.Adversary(model, ATTACK, "vanilla")
        conadv.Adversary(network(norm=False), ATTACK)
        conadv.Adversary(network(statistics="shared"), ATTACK)


# -- what a round is given -----------------------------------------------------------------------


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("wrong", [-1, CLASSES, 255])
def test_labels_out_of_range(make, wrong: int) -> None:
    """Before any schedule's attack: on a GPU such a label would end the process."""
    bad = labels.clone()
    bad[3] = wrong
    adversary = conadv.Adversary(network(), ATTACK, make())
    adversary.peek(images, bad)
    with pytest.raises(ValueError, match=f"A label is {wrong}, but the model has 5 outputs"):
        adversary.loss(images, bad, cross_entropy)


def test_labels_that_cross_entropy_ignores_are_in_range() -> None:
    some = labels.clone()
    some[:2] = -100
    adversary = conadv.Adversary(network(), ATTACK)
    assert adversary.loss(images, some, cross_entropy).isfinite()


@pytest.mark.parametrize("given", [labels[:5], torch.tensor(1), (labels[:7], labels)])
def test_labels_of_another_length(given) -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    with pytest.raises(ValueError, match="8 images but labels of shape"):
        adversary.loss(images, given, lambda o, y: o.sum())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(8, 3, 8, 8, dtype=torch.uint8), "floating-point tensor, standardised"),
        (None, "floating-point tensor, standardised"),
        ([[1.0]], r"images are a list: several inputs go with Attack\(at='layer'\)"),
    ],
)
def test_images_that_are_not_floating_point(given, said) -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    with pytest.raises(ValueError, match=said):
        adversary.loss(given, labels, cross_entropy)


def test_no_images() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    with pytest.raises(ValueError, match="N >= 1"):
        adversary.loss(images[:0], labels[:0], cross_entropy)


def test_views_are_checked_alike() -> None:
    adversary = conadv.Adversary(network(branches=("clean", "other", "adversarial")), ATTACK)
    for view, message in (
        ((images.to(torch.uint8), labels), "floating-point"),
        ((images, labels[:3]), "one label per image"),
    ):
        with pytest.raises(ValueError, match=message):
            adversary.loss(images, labels, cross_entropy, views={"other": view})
    with pytest.raises(ValueError, match="'third'.*clean, other, adversarial"):
        adversary.loss(images, labels, cross_entropy, views={"third": (images, labels)})


@pytest.mark.parametrize("name", ["vanilla", "sequential", "recycled"])
@pytest.mark.parametrize("value", ["per image", "number"])
def test_a_criterion_that_returns_no_single_number(name: str, value: str) -> None:
    def criterion(outputs, given):
        return cross_entropy(outputs, given, reduction="none") if value == "per image" else 1.0

    adversary = conadv.Adversary(network(), ATTACK, name)
    with pytest.raises(ValueError, match=r"criterion returned .*reduction='mean'"):
        adversary.loss(images, labels, criterion)


def test_mean_and_std_of_another_number_of_channels() -> None:
    attack = conadv.Attack(0.1, mean=MEAN[:2], std=STD[:2])
    adversary = conadv.Adversary(network(), attack, "sequential")
    with pytest.raises(ValueError, match="2 values.*3 channels"):
        adversary.loss(images, labels, cross_entropy)

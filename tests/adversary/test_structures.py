"""Criteria that return more than a loss, targets in lists."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from support.nets import conv_net, images

ATTACK = conadv.Attack(0.1)
SCHEDULES = ("sequential", "lookahead", "recycled")


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, labels)


def trained(schedule: str, criterion: Callable, form: Callable = lambda labels: labels) -> Any:
    """Weights after three steps; labels in the given form."""
    torch.manual_seed(0)
    model = conadv.split_norms(conv_net())
    adversary = conadv.Adversary(model, ATTACK, schedule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = [(images(6), form(torch.randint(5, (6,)))) for _ in range(3)]
    for batch, labels in adversary.batches(loader):
        adversary.loss(batch, labels, criterion).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: {"accuracy": 1.0, "loss": loss},
        lambda loss: (loss, {"accuracy": 1.0}),
        lambda loss: [loss, 1.0],
    ],
    ids=["dict", "tuple", "list"],
)
def test_a_criterion_may_return_logs_beside_the_loss(schedule: str, wrap: Callable) -> None:
    found = trained(schedule, lambda outputs, labels: wrap(cross_entropy(outputs, labels)))
    torch.testing.assert_close(found, trained(schedule, cross_entropy), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_targets_in_a_list(schedule: str) -> None:
    """Mixed-up pairs as [labels, other labels, share]."""

    def pair(outputs: Tensor, labels: list) -> Tensor:
        first, second, share = labels
        return share * cross_entropy(outputs, first) + (1 - share) * cross_entropy(outputs, second)

    one = trained(schedule, pair, lambda labels: [labels, labels, torch.tensor(0.3)])
    torch.testing.assert_close(one, trained(schedule, cross_entropy), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("found", [{"total": torch.ones(())}, (), ({}, torch.ones(()))])
def test_a_criterion_without_one_number_is_refused(found: Any) -> None:
    adversary = conadv.Adversary(conadv.split_norms(conv_net()), ATTACK, "recycled")
    with pytest.raises(ValueError, match="by itself, as .loss, logs. or in a dict as 'loss'"):
        adversary.loss(images(4), torch.arange(4), lambda outputs, labels: found)


@pytest.mark.parametrize("inputs", [{"images": images(4)}, (images(4), torch.ones(4))])
def test_several_inputs_are_refused_with_what_to_do(inputs: Any) -> None:
    adversary = conadv.Adversary(conadv.split_norms(conv_net()), ATTACK, "recycled")
    with pytest.raises(ValueError, match="go with Attack.at='layer'.* adversary.mix.images, "):
        adversary.loss(inputs, torch.arange(4), cross_entropy)


def test_other_inputs_travel_with_the_labels() -> None:
    """Each row keeps the input that it came with, through the copies too."""
    adversary = conadv.Adversary(conadv.split_norms(conv_net()), ATTACK, "recycled")
    for number in range(2):
        places = torch.arange(4) + 4.0 * number
        mixed = adversary.mix(images(4), {"place": places, "labels": torch.arange(4)})
        outputs = adversary.model(mixed.images)
        cross_entropy(outputs, mixed.labels["labels"]).backward()
        adversary.collect()
    assert mixed.labels["place"].tolist() == [4.0, 5.0, 6.0, 7.0, 0.0, 1.0, 2.0, 3.0]

"""mix(): the batch of a round for a model that computes its own loss, against loss()."""

from typing import Any

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    SCHEDULES,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
images, labels = batches(1)[0]


class WithLoss(nn.Module):
    """As Hugging Face's models: labels go in, loss and logits come out."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = network(**options)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.net(pixel_values)
        loss = None if labels is None else cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def by_loss(make: Any, **options: Any) -> tuple[nn.Module, conadv.Adversary]:
    model = WithLoss(**options)
    adversary = conadv.Adversary(model, ATTACK, make(), forward="joint")
    optimizer = sgd(model)
    for images, labels in adversary.batches(batches(5)):
        adversary.loss(images, labels, lambda o, y: cross_entropy(o["logits"], y)).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    return model, adversary


def by_mix(make: Any, auto: bool, **options: Any) -> tuple[nn.Module, conadv.Adversary]:
    model = WithLoss(**options)
    adversary = conadv.Adversary(model, ATTACK, make(), auto_collect=auto)
    optimizer = sgd(model)
    criterion = lambda o, y: cross_entropy(o["logits"], y)  # noqa: E731
    for images, labels in adversary.batches(batches(5)):
        mixed = adversary.mix(images, labels, criterion)
        assert mixed.clean_rows == len(images) and len(mixed.images) == len(mixed.labels)
        assert torch.equal(mixed.images[: mixed.clean_rows], images)
        model(mixed.images, mixed.labels)["loss"].backward()
        if not auto:
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    return model, adversary


@every_schedule
@pytest.mark.parametrize("auto", [False, True])
def test_it_trains_as_loss_does(make, auto: bool) -> None:
    """But for rounding: a mean over all rows is the weighted mean of the parts' means."""
    expected, before = by_loss(make)
    found, after = by_mix(make, auto)
    assert_same_state(found, expected, rtol=1e-4, atol=1e-5)
    assert (after.images, after.compute) == (before.images, before.compute)
    for left, right in zip(pending(after), pending(before), strict=True):
        assert torch.isclose(left, right, rtol=1e-4, atol=1e-5).float().mean() > 0.99


@every_schedule
@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize("statistics", ["affine", "shared"])
def test_with_statistics_of_the_mixed_batch(make, auto: bool, statistics: str) -> None:
    expected, _ = by_loss(make, statistics=statistics)
    found, _ = by_mix(make, auto, statistics=statistics)
    assert_same_state(found, expected, rtol=1e-3, atol=1e-4)


@every_schedule
def test_branches_without_images_get_zeros(make) -> None:
    model = network(branches=("clean", "other", "adversarial"))
    adversary = conadv.Adversary(model, ATTACK, make(), auto_collect=True)
    mixed = adversary.mix(images, labels, cross_entropy)
    cross_entropy(model(mixed.images), mixed.labels).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.any() for p in model[1].norms["other"].parameters())


def test_a_view_has_its_branch() -> None:
    model = network(branches=("clean", "other", "adversarial"))
    adversary = conadv.Adversary(model, ATTACK, auto_collect=True)
    for _ in range(2):
        mixed = adversary.mix(images, labels, views={"other": (images.flip(-1), labels)})
        cross_entropy(model(mixed.images), mixed.labels).backward()
        model.zero_grad()
    assert len(mixed.images) == 16, "the same tensor, and no step between: the same round"
    sgd(model).step()
    mixed = adversary.mix(images, labels, views={"other": (images.flip(-1), labels)})
    assert len(mixed.images) == 24 and mixed.clean_rows == 8


@pytest.mark.parametrize("end", ["collect", "skip", "auto", "anew", "load"])
def test_routing_ends_with_the_round(end: str) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, auto_collect=end == "auto")
    state = adversary.state_dict()
    mixed = adversary.mix(images, labels)
    assert model[1].router.layout == (("clean", 8),)
    if end == "skip":
        adversary.skip()
    elif end == "load":
        adversary.load_state_dict(state)
    elif end == "anew":
        adversary.loss(images, labels, cross_entropy)
    else:
        cross_entropy(model(mixed.images), mixed.labels).backward()
        if end == "collect":
            adversary.collect()
    assert model[1].router.layout is None


def test_gradients_of_accumulated_rounds_add_up() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, auto_collect=True)
    data = batches(2)
    for x, y in data:
        mixed = adversary.mix(x, y)
        (cross_entropy(model(mixed.images), mixed.labels) / 2).backward()
    assert len(mixed.images) == 16 and adversary.images == 16


def test_labels_of_any_form_are_put_together() -> None:
    soft = nn.functional.one_hot(labels, CLASSES).float()
    model = network()
    adversary = conadv.Adversary(model, ATTACK, auto_collect=True)

    def take(share: float) -> Any:
        mixed = adversary.mix(images.clone(), {"a": soft, "b": (labels, torch.tensor(share))})
        output = model(mixed.images)
        (cross_entropy(output, mixed.labels["a"]) * mixed.labels["b"][1]).backward()
        return mixed.labels

    take(0.5)
    found = take(0.5)
    assert torch.equal(found["a"], soft.repeat(2, 1))
    assert torch.equal(found["b"][0], labels.repeat(2)) and found["b"][1] == 0.5
    with pytest.raises(ValueError, match="cannot be mixed: values that have no rows differ"):
        take(0.25)


@pytest.mark.parametrize("make", [conadv.Sequential, conadv.Lookahead])
def test_an_attack_needs_a_criterion(make) -> None:
    adversary = conadv.Adversary(network(), ATTACK, make(), auto_collect=True)
    adversary.peek(images, labels)
    with pytest.raises(ValueError, match=r"mix\(images, labels, criterion\)"):
        mixed = adversary.mix(images, labels)
        cross_entropy(adversary.model(mixed.images), mixed.labels).backward()


def test_what_a_mean_over_rows_cannot_be_is_refused() -> None:
    adversary = conadv.Adversary(network(), ATTACK, conadv.Recycled(weight=0.3))
    with pytest.raises(ValueError, match="mean over all of them"):
        adversary.mix(images, labels)
    adversary = conadv.Adversary(network(), ATTACK, forward="separate")
    with pytest.raises(ValueError, match="forward='joint'"):
        adversary.mix(images, labels)

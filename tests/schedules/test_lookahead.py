"""The paper's schedule. Oracle: `Attack` run by hand with the weights of tau steps ago."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    run,
    sgd,
)


def watch(model, adversary, loader, criterion=cross_entropy, peek=None):
    """Train; return each round's weights before the step, and the copies trained on, or None."""
    optimizer, weights, copies = sgd(model), [], []
    for number, (images, labels) in enumerate(loader if peek else adversary.batches(loader)):
        if peek:
            peek(number)
        weights.append(copy.deepcopy(model))
        adversary.preview = None
        adversary.loss(images, labels, criterion).backward()
        adversary.collect()
        copies.append(adversary.preview)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weights, copies


def through_adversarial(model, images, labels, criterion=cross_entropy):
    attack = conadv.Attack(ATTACK.epsilon, mean=ATTACK.mean, std=ATTACK.std, branch="adversarial")
    return attack(model, images, labels, criterion)


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("way", ["batches", "peek"])
def test_copies_are_made_with_the_weights_of_tau_rounds_ago(tau: int, way: str) -> None:
    model, data = network(), batches(7)
    adversary = conadv.Adversary(model, ATTACK, conadv.Lookahead(tau))

    def peek(number: int) -> None:
        if number + tau < len(data):
            adversary.peek(*data[number + tau])

    weights, copies = watch(model, adversary, data, peek=peek if way == "peek" else None)
    assert len(copies) == 7, "every batch is trained on, the last tau too"
    assert copies[:tau] == [None] * tau, "the first tau rounds train on clean images alone"
    for number in range(tau, 7):
        _, found, labels = copies[number]
        expected = through_adversarial(weights[number - tau], *data[number])
        assert torch.equal(found, expected)
        assert torch.equal(labels, data[number][1])
        assert not torch.equal(found, through_adversarial(weights[number], *data[number]))
    assert pending(adversary) == [], "nothing was read beyond the loader's end"


def test_tau_zero_is_sequential() -> None:
    nets = []
    for schedule in (conadv.Lookahead(0), conadv.Sequential()):
        model = network(dropout=0.3)
        torch.manual_seed(0)
        run(conadv.Adversary(model, ATTACK, schedule), sgd(model), batches(4))
        nets.append(model)
    assert_same_state(*nets)


def test_tau_changes_the_copies_and_nothing_else() -> None:
    """Two rounds at a learning rate of zero: fresh and stale weights are the same."""
    found = []
    for tau in (1, 2):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, conadv.Lookahead(tau))
        run(adversary, torch.optim.SGD(model.parameters(), lr=0.0), batches(4))
        found.append(adversary.preview)
    assert torch.equal(found[0][1], found[1][1])


def test_soft_labels_and_any_criterion() -> None:
    model = network()
    data = [(x, nn.functional.one_hot(y, CLASSES) * 0.8 + 0.2 / CLASSES) for x, y in batches(3)]

    def criterion(outputs, labels):
        return (outputs.softmax(1) - labels).square().mean()

    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    weights, copies = watch(model, adversary, data, criterion)
    expected = through_adversarial(weights[0], *data[1], criterion)
    assert torch.equal(copies[1][1], expected) and torch.equal(copies[1][2], data[1][1])


def test_a_short_last_batch_has_its_own_copies() -> None:
    model, data = network(), [*batches(2), *batches(1, size=3)]
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    _, copies = watch(model, adversary, data)
    assert [None if c is None else len(c[1]) for c in copies] == [None, 8, 3]


def test_batches_of_another_device_are_moved() -> None:
    """There is one device here: the meta device stands for the model's, as seen by `to`."""
    schedule = conadv.Lookahead()
    seen = []

    class Round:
        attack = conadv.Attack(4 / 255, norm="l2")
        images = torch.empty(8, 3, 8, 8, device="meta")
        labels = None
        progress = 0.0
        keep_origins = False
        future = (batches(1)[0][0], {"hard": batches(1)[0][1]})

        def perturb(self, images, labels):
            seen.append((images.device.type, labels["hard"].device.type))
            return conadv.attack.Perturbed(images, torch.zeros(()))

        def side_stream(self):
            return None

        def report_zero_share(self, share):
            pass

    current = Round()
    assert schedule.copies(current) == []
    schedule.collect(current)
    assert seen == [("meta", "meta")]


def test_labels_that_the_loader_fills_anew_are_kept() -> None:
    model, data = network(), batches(3)
    images, labels = torch.empty_like(data[0][0]), torch.empty_like(data[0][1])
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    adversary.peek(images.copy_(data[1][0]), labels.copy_(data[1][1]))
    adversary.loss(*data[0], cross_entropy).backward()
    adversary.collect()
    images.zero_()
    labels.zero_()
    adversary.loss(*data[1], cross_entropy).backward()
    adversary.collect()
    assert torch.equal(adversary.preview[2], data[1][1])


def test_what_was_shown_serves_one_round() -> None:
    model, data = network(), batches(3)
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    adversary.peek(*data[1])
    for number in range(3):
        adversary.loss(*data[number], cross_entropy).backward()
        adversary.collect()
    assert adversary.compute == pytest.approx(8 * (3 + 1 + 2 / 3))


def test_micro_batches_cut_inside_the_loop_are_refused() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    with pytest.raises(RuntimeError, match="loader of the micro-batches"):
        for images, labels in adversary.batches(batches(2)):
            for x, y in zip(images.split(4), labels.split(4), strict=True):
                adversary.loss(x, y, cross_entropy, fraction=0.5).backward()
                adversary.collect()
    # The loop is over: rounds of one's own are fine again.
    adversary.skip()
    adversary.loss(*batches(1)[0], cross_entropy)


def test_a_loop_that_was_left_leaves_nothing_behind() -> None:
    model, data = network(), batches(4)
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    for images, labels in adversary.batches(data):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        break
    for _ in range(2):
        adversary.loss(*data[0], cross_entropy).backward()
        adversary.collect()
    assert pending(adversary) == []


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": 1}, "must yield"),
        ((torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4)), "floating-point"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(3)), "one label per image"),
    ],
)
def test_future_batches_are_checked(batch: object, message: str) -> None:
    model, good = network(), batches(1)
    adversary = conadv.Adversary(model, ATTACK, "lookahead")
    with pytest.raises(ValueError, match=message):
        for images, labels in adversary.batches([*good, batch]):
            adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()


@pytest.mark.parametrize("tau", [-1, 1.0, True, "1"])
def test_tau_is_a_whole_number(tau: object) -> None:
    with pytest.raises(ValueError, match="tau"):
        conadv.Lookahead(tau)


def test_state_of_another_tau_is_refused() -> None:
    one = conadv.Adversary(network(), ATTACK, conadv.Lookahead(1))
    two = conadv.Adversary(network(), ATTACK, conadv.Lookahead(2))
    with pytest.raises(ValueError, match="tau=1"):
        two.load_state_dict(one.state_dict())

"""What a user can read after a round, against the same numbers computed by hand."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    MEAN,
    SCHEDULES,
    STD,
    batches,
    cross_entropy,
    input_gradient,
    network,
    pending,
    run,
    sgd,
    sign_step,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def test_losses_are_those_of_the_branches() -> None:
    model, data = network(), batches(2)
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(weight=0.3, share=0.5))
    run(adversary, sgd(model), data[:1])
    copies, copied = pending(adversary)
    twin = copy.deepcopy(model)
    loss = adversary.loss(*data[1], cross_entropy, fraction=0.25)
    d = adversary.diagnostics
    with conadv.route(twin, "clean"):
        outputs = twin(data[1][0])
    clean = cross_entropy(outputs, data[1][1])
    with conadv.route(twin, "adversarial"):
        adversarial = cross_entropy(twin(copies), copied)
    torch.testing.assert_close(d.clean_loss, clean.detach())
    torch.testing.assert_close(d.adversarial_loss, adversarial.detach())
    torch.testing.assert_close(loss, (0.7 * clean + 0.3 * adversarial) / 4)
    torch.testing.assert_close(d.outputs, outputs.detach())
    assert not any(t.requires_grad for t in (d.clean_loss, d.adversarial_loss, d.outputs))
    assert (d.images, d.compute) == (12, 12)


def test_several_cohorts_have_one_mean() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=3))
    run(adversary, sgd(model), batches(5))
    copies = adversary.schedule._pending
    sizes = [len(c) for c in copies]
    assert len(set(sizes)) > 1, "the cohorts are not all of one size"
    adversary.loss(*batches(1)[0], cross_entropy)
    twin = copy.deepcopy(model)
    with conadv.route(twin, "adversarial"):
        outputs = twin(torch.cat([c.images for c in copies]))
    expected = cross_entropy(outputs, torch.cat([c.labels for c in copies]))
    torch.testing.assert_close(adversary.diagnostics.adversarial_loss, expected.detach())


@every_schedule
@pytest.mark.filterwarnings("ignore:.*input gradient is exactly zero")
def test_zero_share(make) -> None:
    """A network that reads one of three channels: two thirds of the gradient are zero."""
    model = network(norm=False)
    with torch.no_grad():
        model[0].weight[:, 1:] = 0
    adversary = conadv.Adversary(model, ATTACK, make())
    run(adversary, torch.optim.SGD(model.parameters(), lr=0.0), batches(4))
    share = adversary.diagnostics.zero_share
    if adversary.schedule.name in ("vanilla", "noise", "lookahead"):
        assert share is None  # no attack in this round: lookahead has nothing left to attack
    else:
        assert share == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("name", ["sequential", "lookahead", "recycled"])
def test_an_attack_that_went_out_is_not_silent(name: str) -> None:
    model = network(norm=False)
    adversary = conadv.Adversary(model, ATTACK, name)
    batch = batches(1)[0]
    adversary.peek(*batch)
    adversary.loss(*batch, lambda o, y: o.sum() * 0.0).backward()
    with pytest.warns(RuntimeWarning, match="100% of the input gradient is exactly zero"):
        adversary.collect()
    assert adversary.diagnostics.zero_share == 1


# -- agreement -----------------------------------------------------------------------------------


def test_agreement_is_one_where_nothing_is_stale() -> None:
    for schedule in (conadv.Sequential(), conadv.Lookahead(0), conadv.Sequential(share=0.5)):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, schedule, track_agreement=True)
        run(adversary, sgd(model), batches(2))
        assert adversary.diagnostics.agreement == pytest.approx(1)


def test_agreement_with_random_starts_takes_the_same_ones_again() -> None:
    attack = conadv.Attack(0.05, mean=MEAN, std=STD, random_start=1.0)
    adversary = conadv.Adversary(network(dropout=0.3), attack, "sequential", track_agreement=True)
    adversary.loss(*batches(1)[0], cross_entropy).backward()
    adversary.collect()
    assert adversary.diagnostics.agreement == pytest.approx(1)


@pytest.mark.parametrize("make", [conadv.Recycled, conadv.Lookahead, lambda: conadv.Lookahead(2)])
def test_agreement_is_the_cosine_of_stale_and_fresh_perturbations_in_pixels(make) -> None:
    model, data = network(), batches(4)
    adversary = conadv.Adversary(model, ATTACK, make(), track_agreement=True)
    optimizer, std = sgd(model, lr=1.0), torch.tensor(STD).view(1, 3, 1, 1)
    branch = "clean" if adversary.schedule.name == "recycled" else "adversarial"
    found = []
    for images, labels in adversary.batches(data):
        twin = copy.deepcopy(model)
        adversary.loss(images, labels, cross_entropy).backward()
        used = list(adversary._round.copies)
        adversary.collect()
        value = adversary.diagnostics.agreement
        if not used:
            assert value is None
        else:
            (copies,) = used
            gradient = input_gradient(twin, copies.origins, copies.labels, branch)
            fresh = (sign_step(copies.origins, gradient, ATTACK.epsilon) - copies.origins) * std
            stale = (copies.images - copies.origins) * std
            cosine = nn.functional.cosine_similarity(stale.flatten(1), fresh.flatten(1)).mean()
            assert value == pytest.approx(cosine.item(), abs=1e-4)
            assert -1 <= value < 0.999
            found.append(value)
        optimizer.step()
        optimizer.zero_grad()
    assert found


def test_agreement_is_measured_on_request_only_and_counted() -> None:
    model, data = network(), batches(4)
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    optimizer = sgd(model)
    run(adversary, optimizer, data[:2])
    assert adversary.diagnostics.agreement is None and adversary.diagnostics.compute == 16
    adversary.track_agreement = True
    run(adversary, optimizer, data[2:3])
    assert adversary.diagnostics.agreement is None, "these copies' images were not kept"
    run(adversary, optimizer, data[3:])
    assert adversary.diagnostics.agreement is not None
    assert adversary.diagnostics.compute == pytest.approx(8 * (2 + 2 / 3))


@every_schedule
def test_measuring_changes_nothing(make) -> None:
    states = []
    for track in (False, True):
        model = network(dropout=0.2)
        torch.manual_seed(0)
        adversary = conadv.Adversary(model, ATTACK, make(), track_agreement=track)
        run(adversary, sgd(model), batches(4))
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


# -- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "steps", "later", "first"),
    [
        (conadv.Vanilla, 1, 1, 1),
        (conadv.Noise, 1, 2, 2),
        (conadv.Sequential, 1, 2 + 2 / 3, 2 + 2 / 3),
        (conadv.Sequential, 3, 4, 4),
        (lambda: conadv.Sequential(share=0.5), 1, 1.5 + 1 / 3, 1.5 + 1 / 3),
        (conadv.Lookahead, 1, 2 + 2 / 3, 1 + 2 / 3),
        (lambda: conadv.Lookahead(2), 2, 2 + 4 / 3, 1 + 4 / 3),
        (conadv.Recycled, 1, 2, 1),
        (lambda: conadv.Recycled(share=0.5, weight=0.2), 1, 1.5, 1),
    ],
)
def test_compute_and_images_add_up(schedule, steps, later, first) -> None:
    model, data = network(), batches(3)
    attack = conadv.Attack(0.05, mean=MEAN, std=STD, steps=steps)
    adversary = conadv.Adversary(model, attack, schedule())
    costs, optimizer = [], sgd(model)
    for number in range(4):
        adversary.peek(*data[0])
        adversary.loss(*data[0], cross_entropy).backward()
        adversary.collect()
        optimizer.step()
        costs.append(adversary.diagnostics.compute / 8)
        assert adversary.compute == pytest.approx(8 * sum(costs))
        assert adversary.images == 8 * (number + 1)
    assert costs[0] == pytest.approx(first) and costs[3] == pytest.approx(later)

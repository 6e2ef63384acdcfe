"""Rounds without images, on a device that has fewer micro-batches in a step than others."""

import pytest
import torch

import conadv
from support.loops import (
    ATTACK,
    SCHEDULES,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_lookahead_stays_in_step(tau: int, at: int) -> None:
    """Round `at` has no images: nothing is made for it, and nothing in it for a later round."""
    data = batches(9)
    model = network()
    adversary, optimizer = conadv.Adversary(model, ATTACK, conadv.Lookahead(tau)), sgd(model)
    trained = []
    for number, (images, labels) in enumerate(data):
        if number == at:
            adversary.idle()
            trained.append(None)
            continue
        if (later := number + tau) < len(data) and later != at:
            adversary.peek(*data[later])
        adversary.preview = None
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        trained.append(adversary.preview is not None)
        if adversary.preview is not None:
            assert torch.equal(adversary.preview[0], images)
            assert torch.equal(adversary.preview[2], labels)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    expected = [number >= tau and number != at + tau for number in range(len(data))]
    assert trained == [*expected[:at], None, *expected[at + 1 :]]


def test_lookahead_drops_what_was_due() -> None:
    adversary = conadv.Adversary(network(), ATTACK, conadv.Lookahead(2))
    now, first, second = batches(3)
    for later in (first, second):
        adversary.peek(*later)
        adversary.loss(*now, cross_entropy).backward()
        adversary.collect()
    before = adversary.state_dict()["state"]["pending"]
    adversary.idle()
    after = adversary.state_dict()["state"]["pending"]
    assert torch.equal(after[0]["bits"], before[1]["bits"]) and after[1] is None
    assert not torch.equal(before[0]["bits"], before[1]["bits"])


@pytest.mark.parametrize("refine", [1, 2])
def test_recycled_copies_wait_for_the_next_round_with_images(refine: int) -> None:
    nets = []
    for idle in (False, True):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=refine))
        optimizer = sgd(model)
        for batch in batches(5):
            run(adversary, optimizer, [batch])
            if idle:
                kept = pending(adversary)
                adversary.idle()
                assert kept and all(map(torch.equal, kept, pending(adversary)))
        nets.append(model)
    assert_same_state(*nets)


@every_schedule
def test_an_idle_round_costs_nothing_and_is_counted(make) -> None:
    adversary = conadv.Adversary(network(), ATTACK, make())
    adversary.peek(*batches(1)[0])
    before = {name: getattr(adversary, name) for name in ("compute", "images", "progress")}
    adversary.idle()
    assert {name: getattr(adversary, name) for name in before} == before
    assert adversary.state_dict()["rounds"] == 1
    assert pending(adversary) == [], "what was shown was for that round"


@every_schedule
def test_a_round_that_was_begun_cannot_be_idle(make) -> None:
    adversary = conadv.Adversary(network(), ATTACK, make())
    images, labels = batches(1)[0]
    loss = adversary.loss(images, labels, cross_entropy)
    with pytest.raises(RuntimeError, match=r"collect\(\) or skip\(\)"):
        adversary.idle()
    loss.backward()
    adversary.collect()
    adversary.idle()

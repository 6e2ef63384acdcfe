"""The weights, and whatever else the step is not to touch, to the last bit."""

import copy

import pytest
import torch
from torch import nn

from conadv.weights import (
    Lookahead,
    Noise,
    Recycled,
    Sequential,
    Slot,
    WeightAdversary,
    WeightAttack,
)
from support.loops import assert_same_state, batches, cross_entropy, network, sgd
from support.weights import ATTACK, DATA, SCHEDULES

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
def test_a_round_changes_no_weight(make) -> None:
    model = network()
    adversary = WeightAdversary(model, ATTACK, make())
    before = [p.detach().clone() for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    for images, labels in adversary.batches(DATA):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    assert identities == [id(p) for p in model.parameters()]
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


@every_schedule
def test_an_exception_anywhere_leaves_the_model_and_the_round_as_they_were(make) -> None:
    model = network()
    unbroken = copy.deepcopy(model)
    adversaries = [WeightAdversary(m, ATTACK, make()) for m in (model, unbroken)]
    optimizers = [sgd(m) for m in (model, unbroken)]
    left = 0
    """Calls of the criterion until it fails."""

    def failing(outputs, labels):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyError("the criterion's own affair")
        return cross_entropy(outputs, labels)

    loops = [a.batches(DATA) for a in adversaries]
    for images, labels in loops[0]:
        next(loops[1])
        before = copy.deepcopy(model.state_dict())
        for passes in (1, 2, 3):
            left = passes
            with pytest.raises(KeyError):
                adversaries[0].loss(images, labels, failing)
                raise KeyError("fewer passes than that")
            for name, p in model.named_parameters():
                assert torch.equal(p, before[name]) and p.grad is None, name
            # That a pass had moved statistics before is an ordinary loop's lot too.
            model.load_state_dict(before)
        for adversary, optimizer in zip(adversaries, optimizers, strict=True):
            adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert_same_state(model, unbroken)


@pytest.mark.parametrize("name", ["sequential", "recycled", "slot", "lookahead"])
def test_a_void_round_leaves_nothing_behind(name: str) -> None:
    model = network()
    adversary = WeightAdversary(model, ATTACK, name)
    before = [p.detach().clone() for p in model.parameters()]
    bad = (torch.full_like(DATA[0][0], float("nan")), DATA[0][1])
    for number, (images, labels) in enumerate(adversary.batches([DATA[0], bad, DATA[1], DATA[2]])):
        buffers = [b.clone() for b in model.buffers()]
        loss = adversary.loss(images, labels, cross_entropy)
        if number == 1:
            assert not torch.isfinite(loss)
            adversary.skip()
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            continue
        assert torch.isfinite(loss)
        loss.backward()
        adversary.collect()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_dropped_and_not_in_the_mean() -> None:
    """Without a skip: one micro-batch of four is bad, the others lose nothing."""
    model, clean = network(), network()
    images, labels = batches(1, size=16)[0]
    spoilt = images.clone()
    spoilt[4:8] = float("inf")
    adversary = WeightAdversary(model, ATTACK)
    loss = adversary.loss(spoilt, labels, cross_entropy)
    loss.backward()
    adversary.collect()
    kept = adversary.state_dict()["state"]["pending"][0]
    assert [entry["gradient"] is None for entry in kept] == [False, True, False, False]
    parts = [slice(0, 4), slice(8, 12), slice(12, 16)]
    alone = WeightAdversary(clean, ATTACK)
    order = torch.cat([images[part] for part in parts])
    alone.loss(order, torch.cat([labels[part] for part in parts]), cross_entropy).backward()
    alone.collect()
    expected = alone.state_dict()["state"]["pending"][0]
    for found, other in zip([kept[0], kept[2], kept[3]], expected, strict=True):
        for a, b in zip(found["gradient"], other["gradient"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# -- running statistics ------------------------------------------------------------------------


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for b in model.buffers()]


@pytest.mark.parametrize(
    ("make", "rounds"),
    [(Recycled, 3), (Sequential, 3), (lambda: Sequential(weight=0.5), 3), (Slot, 3)],
)
def test_statistics_move_once_for_each_image(make, rounds: int) -> None:
    """By its pass at the weights themselves; where there is none, by the other one."""
    plain, model = network(), network()
    adversary = WeightAdversary(model, WeightAttack(0.0, micro_batch=4), make())
    for images, labels in DATA[:rounds]:
        for part in images.split(4):
            plain(part)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    for ours, theirs in zip(statistics(model), statistics(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_passes_at_moved_weights_can_have_a_branch_of_their_own() -> None:
    model = network()
    attack = WeightAttack(0.05, micro_batch=4, branch="adversarial")
    adversary = WeightAdversary(model, attack)
    optimizer = sgd(model)
    norm = model[1].norms
    for number, (images, labels) in enumerate(DATA):
        before = norm["adversarial"].running_mean.clone()
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        moved = not torch.equal(before, norm["adversarial"].running_mean)
        assert moved == (number > 0)
        assert norm["adversarial"].weight.grad is not None
        assert (norm["adversarial"].weight.grad.abs().sum() > 0) == (number > 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="no branch 'moved'"):
        WeightAdversary(model, WeightAttack(branch="moved"))


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("make", [Noise, Sequential, Slot, Lookahead])
def test_statistics_move_once_also_where_some_have_a_clean_pass_and_some_none(make, share) -> None:
    model = network()
    adversary = WeightAdversary(model, WeightAttack(0.0, micro_batch=4), make(share=share))
    for images, labels in adversary.batches(DATA):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    assert model[1].norms["clean"].num_batches_tracked == 2 * len(DATA)


def test_a_fraction_of_zero_is_in_no_mean() -> None:
    """A rank without images takes another's, with weight 0."""
    adversary = WeightAdversary(network(), ATTACK, rounds=2)
    adversary.loss(*DATA[0], cross_entropy).backward()
    adversary.collect()
    adversary.loss(*DATA[1], cross_entropy, fraction=0.0).backward()
    adversary.collect()
    alone = WeightAdversary(network(), ATTACK)
    alone.loss(*DATA[0], cross_entropy).backward()
    alone.collect()
    found, expected = (a.state_dict()["state"]["pending"] for a in (adversary, alone))
    assert [entry["gradient"] for entry in found[1]] == [None, None]
    for a, b in zip(found[0], expected[0], strict=True):
        for left, right in zip(a["gradient"], b["gradient"], strict=True):
            torch.testing.assert_close(left, right)

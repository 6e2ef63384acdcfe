"""A saved and continued run is the unbroken one, bit for bit, pending gradients included."""

from typing import Any

import pytest
import torch

import conadv
from conadv.weights import Lookahead, Recycled, WeightAdversary, WeightAttack
from support.loops import assert_same_state, batches, cross_entropy, network, pending, sgd
from support.through_file import through_a_file
from support.weights import SCHEDULES, cut

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
ATTACK = WeightAttack(0.05, micro_batch=4)


class Session:
    """A model with dropout, its optimizer and adversary; a step is two rounds."""

    def __init__(self, make, seed: int = 0) -> None:
        self.model = network(dropout=0.2)
        self.adversary = WeightAdversary(self.model, ATTACK, make(), rounds=2, seed=seed)
        self.optimizer = sgd(self.model)

    def state_dict(self) -> dict[str, Any]:
        names = ("model", "optimizer", "adversary")
        grads = [p.grad for p in self.model.parameters()]
        return {n: getattr(self, n).state_dict() for n in names} | {
            "rng": torch.get_rng_state(),
            "grads": grads,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "adversary"):
            getattr(self, name).load_state_dict(state[name])
        for p, grad in zip(self.model.parameters(), state["grads"], strict=True):
            p.grad = grad
        torch.set_rng_state(state["rng"])

    def run(self, pieces, start: int, stop: int) -> None:
        loader = pieces[start:]
        for number, (images, labels) in enumerate(self.adversary.batches(loader), start=start):
            self.adversary.progress = number / len(pieces)
            self.adversary.loss(images, labels, cross_entropy, fraction=0.5).backward()
            self.adversary.collect()
            if number % 2:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            if number + 1 == stop:
                return


@every_schedule
@pytest.mark.parametrize("cut_at", [2, 3, 6])  # also in the middle of a step
def test_a_continued_run_is_the_unbroken_one(make, cut_at: int) -> None:
    pieces = [piece for x, y in batches(5, size=16) for piece in cut(x, y, 8)]
    torch.manual_seed(0)
    unbroken = Session(make)
    unbroken.run(pieces, 0, 10)
    torch.manual_seed(0)
    first = Session(make)
    first.run(pieces, 0, cut_at)
    saved = through_a_file(first.state_dict())
    torch.manual_seed(99)
    second = Session(make, seed=5)  # another seed: the state's counts
    second.load_state_dict(saved)
    second.run(pieces, cut_at, 10)
    assert_same_state(second.model, unbroken.model)
    for left, right in zip(pending(second.adversary), pending(unbroken.adversary), strict=True):
        assert torch.equal(left, right)
    for name in ("compute", "images", "seed"):
        assert getattr(second.adversary, name) == getattr(unbroken.adversary, name)


def test_what_is_pending_does_not_depend_on_the_memory_format() -> None:
    data = batches(3)
    nchw, nhwc = network(), network().to(memory_format=torch.channels_last)
    attack = WeightAttack(0.05, micro_batch=4, dtype=torch.float32)
    adversaries = [WeightAdversary(model, attack) for model in (nchw, nhwc)]
    for images, labels in data[:1]:
        adversaries[0].loss(images, labels, cross_entropy).backward()
        adversaries[0].collect()
    adversaries[1].load_state_dict(through_a_file(adversaries[0].state_dict()))
    images, labels = data[1]
    losses = [a.loss(images, labels, cross_entropy) for a in adversaries]
    torch.testing.assert_close(*losses)


def test_images_and_weights_are_saved_together() -> None:
    def session():
        model = network()
        images = conadv.Adversary(model, conadv.Attack(0.03, pixel_range=None), "recycled")
        attack = WeightAttack(0.05, centred=False)
        return model, WeightAdversary(model, attack, adversary=images), sgd(model)

    def run(model, adversary, optimizer, data):
        for images, labels in data:
            adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    data, unbroken, first, second = batches(5), session(), session(), session()
    run(*unbroken, data)
    run(*first, data[:2])
    for ours, theirs in zip(second, first, strict=True):
        ours.load_state_dict(through_a_file(theirs.state_dict()))
    run(*second, data[2:])
    assert_same_state(second[0], unbroken[0])


def test_states_of_another_kind_are_refused() -> None:
    state = WeightAdversary(network(), ATTACK, "slot").state_dict()
    with pytest.raises(ValueError, match="'slot', this adversary runs 'recycled'"):
        WeightAdversary(network(), ATTACK).load_state_dict(state)
    of_images = conadv.Adversary(network(), conadv.Attack(0.1, pixel_range=None))
    for version in ({}, {"version": 2}, of_images.state_dict()):
        with pytest.raises(ValueError, match="this release reads version 1 of WeightAdversary"):
            WeightAdversary(network(), ATTACK).load_state_dict(version)
    with pytest.raises(ValueError, match="gradients of 4 rounds, here 2 wait"):
        WeightAdversary(network(), ATTACK, Lookahead(2)).load_state_dict(
            WeightAdversary(network(), ATTACK, Lookahead(4)).state_dict()
        )
    adversary = WeightAdversary(network(), ATTACK, Recycled())
    adversary.loss(*batches(1)[0], cross_entropy).backward()
    adversary.collect()
    other = WeightAdversary(network(), WeightAttack(parameters="all"), Recycled())
    with pytest.raises(ValueError, match="gradients of 3 parameters of other shapes"):
        other.load_state_dict(adversary.state_dict())

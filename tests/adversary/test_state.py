"""A saved and continued run is the unbroken one, bit for bit, what is pending included."""

import io
from typing import Any

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    EPSILON,
    MEAN,
    SCHEDULES,
    STD,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Session:
    """A model, its optimizer and adversary; random starts where the schedule allows them."""

    def __init__(self, make, seed: int = 0, **options: Any) -> None:
        self.model = network(dropout=0.2)
        if make().name in ("sequential", "lookahead"):
            options |= {"random_start": 0.8, "target": "random"}
        attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, **options)
        self.adversary = conadv.Adversary(self.model, attack, make(), seed=seed)
        self.optimizer = sgd(self.model)

    def state_dict(self) -> dict[str, Any]:
        names = ("model", "optimizer", "adversary")
        return {n: getattr(self, n).state_dict() for n in names} | {"rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "adversary"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])


def steps(session: Session, loader, count: int) -> None:
    """Some rounds of a loader's loop; what the loop has read ahead is lost with the process."""
    for number, (images, labels) in enumerate(session.adversary.batches(loader)):
        session.adversary.progress = number / 10
        session.adversary.loss(images, labels, cross_entropy).backward()
        session.adversary.collect()
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        if number + 1 == count:
            return


@every_schedule
@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"epsilon_min": 0.0, "block_size": 3}])
def test_a_continued_run_is_the_unbroken_one(make, cut: int, options: dict[str, Any]) -> None:
    data = batches(7)
    torch.manual_seed(0)
    unbroken = Session(make, **options)
    steps(unbroken, data, 7)

    torch.manual_seed(0)
    first = Session(make, **options)
    steps(first, data, cut)
    saved = through_a_file(first.state_dict())
    torch.manual_seed(99)
    second = Session(make, seed=5, **options)  # another seed: the state's counts
    second.load_state_dict(saved)
    steps(second, data[cut:], 7 - cut)

    assert_same_state(second.model, unbroken.model)
    for left, right in zip(pending(second.adversary), pending(unbroken.adversary), strict=True):
        assert torch.equal(left, right)
    for name in ("compute", "images", "seed"):
        assert getattr(second.adversary, name) == getattr(unbroken.adversary, name)


def test_a_pipeline_is_continued_in_the_middle() -> None:
    def make():
        return conadv.Recycled(refine=3)

    data = batches(6, size=7)
    sessions = [Session(make), Session(make)]
    torch.manual_seed(0)
    steps(sessions[0], data, 2)
    saved = through_a_file(sessions[0].state_dict())
    cohorts = saved["adversary"]["state"]["pending"]
    assert [(c["age"], len(c["images"])) for c in cohorts] == [(2, 3), (1, 3)]
    steps(sessions[0], data[2:], 4)
    sessions[1].load_state_dict(saved)
    steps(sessions[1], data[2:], 4)
    assert_same_state(sessions[0].model, sessions[1].model)
    left, right = (pending(s.adversary) for s in sessions)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True)) and left


@every_schedule
def test_the_state_is_of_plain_things_and_no_larger_than_it_must_be(make) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make())
    data = batches(4)
    run(adversary, sgd(model), [(x[:5], y[:5]) for x, y in data])  # views of a larger tensor

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                visit(one)
            return
        assert value is None or type(value) in (torch.Tensor, int, float, str)
        if isinstance(value, torch.Tensor):
            assert not value.requires_grad
            # torch.save writes the whole storage of a view.
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()

    visit(adversary.state_dict())


def test_a_state_is_not_changed_by_going_on() -> None:
    session = Session(lambda: conadv.Recycled(refine=2))
    data = batches(4)
    steps(session, data, 2)
    state = session.adversary.state_dict()
    copies = [t.clone() for t in pending(session.adversary)]
    steps(session, data[2:], 2)
    kept = [t for c in state["state"]["pending"] for t in c.values() if torch.is_tensor(t)]
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True)) and kept


def test_labels_of_any_structure_are_saved() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    images, labels = batches(1)[0]
    given = {"hard": labels, "pair": (labels.flip(0), 0.25), "name": "mixup"}

    def criterion(outputs, y):
        return cross_entropy(outputs, y["hard"]) + y["pair"][1] * outputs.square().mean()

    run(adversary, sgd(model), [(images, given)], criterion)
    other = conadv.Adversary(network(), ATTACK, "recycled")
    other.load_state_dict(through_a_file(adversary.state_dict()))
    other.loss(images, given, criterion).backward()
    other.collect()
    kept = other.preview[2]
    assert torch.equal(kept["hard"], labels) and torch.equal(kept["pair"][0], labels.flip(0))
    assert (kept["pair"][1], kept["name"]) == (0.25, "mixup")


def test_soft_labels_and_lower_precision_come_back_as_they_were() -> None:
    model = network().to(torch.bfloat16)
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    images, labels = batches(1)[0]
    soft = nn.functional.one_hot(labels, CLASSES).bfloat16()
    images = images.bfloat16().to(memory_format=torch.channels_last)
    run(adversary, sgd(model), [(images, soft)])
    saved = through_a_file(adversary.state_dict())["state"]["pending"][0]
    assert saved["images"].dtype == saved["labels"].dtype == torch.bfloat16
    assert saved["images"].is_contiguous(memory_format=torch.channels_last)


def test_states_of_another_kind_are_refused() -> None:
    recycled = conadv.Adversary(network(), ATTACK, "recycled").state_dict()
    adversary = conadv.Adversary(network(), ATTACK, "noise")
    with pytest.raises(ValueError, match="'recycled', this adversary runs 'noise'"):
        adversary.load_state_dict(recycled)
    for version in ({}, {"version": 2}, {"version": None}):
        with pytest.raises(ValueError, match="this release reads version 1"):
            adversary.load_state_dict(version)


def test_loading_ends_a_round_that_was_begun() -> None:
    session = Session(conadv.Recycled)
    state = session.adversary.state_dict()
    session.adversary.loss(*batches(1)[0], cross_entropy).backward()
    session.adversary.load_state_dict(state)
    with pytest.raises(RuntimeError, match="without a loss"):
        session.adversary.collect()

"""The fast version against the one that is written out, against SAM, and against itself."""

import copy

import pytest
import torch

from conadv.optim import SAM
from conadv.weights import Lookahead, Recycled, Sequential, Slot, WeightAdversary, WeightAttack
from conadv.weights import reference as written_out
from conadv.weights.schedule import Copy
from support.loops import assert_same_state, batches, cross_entropy, network, pending, sgd
from support.weights import ATTACK, DATA, SCHEDULES, cut, train

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def attack(**options) -> WeightAttack:
    return WeightAttack(**{"rho": 0.05, "micro_batch": 4, "dtype": torch.float32, **options})


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("radius", ["layer", "global"])
def test_sequential_is_what_is_written_out(radius, weight: float) -> None:
    model = network()
    optimizer = sgd(model)
    for images, labels in DATA:
        parts = cut(images, labels, 4)
        written_out.sequential(model, parts, cross_entropy, 0.05, radius, weight)
        optimizer.step()
    fast, _ = train(lambda: Sequential(weight=weight), DATA, attack(radius=radius))
    assert_same_state(model, fast, **CLOSE)


@pytest.mark.parametrize(
    ("radius", "centred", "every"),
    [("layer", True, 1), ("layer", True, 2), ("layer", False, 2), ("global", False, 1)],
)
def test_recycled_is_what_is_written_out(radius, centred: bool, every: int) -> None:
    model, waiting = network(), []
    optimizer = sgd(model)
    for step, (images, labels) in enumerate(DATA):
        parts = cut(images, labels, 4)
        waiting = written_out.recycled(model, parts, waiting, cross_entropy, 0.05, radius, centred)
        if step % every == 1:  # the next step is none in turn
            waiting = []
        optimizer.step()
    fast, adversary = train(
        lambda: Recycled(every=every), DATA, attack(radius=radius, centred=centred)
    )
    assert_same_state(model, fast, **CLOSE)
    kept = adversary.state_dict()["state"]["pending"][0]
    for ((images, labels), direction), entry in zip(waiting, kept, strict=True):
        assert torch.equal(entry["images"], images) and torch.equal(entry["labels"], labels)
        chosen = [direction[name] for name, p in model.named_parameters() if p.ndim >= 2]
        factor = entry["gradient"][0].norm() / chosen[0].norm()  # of any length without a mean
        for ours, theirs in zip(entry["gradient"], chosen, strict=True):
            torch.testing.assert_close(ours, theirs * factor, rtol=1e-3, atol=1e-6)
        assert not centred or factor == pytest.approx(1, rel=1e-4)


def test_one_micro_batch_along_its_own_gradient_is_sam() -> None:
    model = network(split=False)
    optimizer = sgd(model)
    sam = SAM([p for p in model.parameters()], rho=0.1)
    for images, labels in DATA:
        cross_entropy(model(images), labels).backward()
        sam.take_gradient()
        with sam.perturbed():
            cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    setting = WeightAttack(0.1, radius="global", parameters="all")
    fast, _ = train(Sequential, DATA, setting, model=network(split=False))
    weights, ours = dict(model.named_parameters()), dict(fast.named_parameters())
    for name in weights:
        torch.testing.assert_close(weights[name], ours[name], **CLOSE)


@every_schedule
@pytest.mark.parametrize("per_round", [4, 8])
def test_how_a_device_splits_its_micro_batches_does_not_matter(make, per_round: int) -> None:
    data = batches(4, size=16)
    whole, first = train(make, data)
    rounds, second = train(make, data, per_round=per_round)
    if first.schedule.name == "lookahead":  # its first step's passes move statistics in turn
        whole.load_state_dict({**whole.state_dict(), **dict(rounds.named_buffers())})
    assert_same_state(whole, rounds, **CLOSE)
    assert first.compute == second.compute and first.images == second.images


def test_own_gradients_are_those_of_autograd() -> None:
    """Also where the loss is scaled, mixed and added up with others."""
    model = network()
    adversary = WeightAdversary(model, ATTACK, Recycled(weight=0.3), rounds=2)
    images, labels = batches(1, size=16)[0]
    twin, parts = copy.deepcopy(model), cut(images, labels, 4)
    expected = written_out.own_parts([written_out.gradient(twin, b, cross_entropy) for b in parts])
    for half in cut(images, labels, 8):
        (adversary.loss(*half, cross_entropy, fraction=0.5) * 1024).backward()
        adversary.collect()
    found = [e for entry in adversary.state_dict()["state"]["pending"] for e in entry]
    assert len(found) == 4
    for entry, direction in zip(found, expected, strict=True):
        chosen = [direction[name] for name, p in model.named_parameters() if p.ndim >= 2]
        for ours, theirs in zip(entry["gradient"], chosen, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gradients_are_kept_in_bf16_by_default() -> None:
    _, exact = train(Recycled, DATA)
    _, short = train(Recycled, DATA, attack(dtype=torch.bfloat16))
    kept = [a.state_dict()["state"]["pending"][0][0]["gradient"] for a in (exact, short)]
    for a, b in zip(*kept, strict=True):
        assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
        assert torch.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.999
    assert WeightAttack().dtype == torch.bfloat16


def flat(gradient: written_out.Gradient) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradient.values() if g.ndim >= 2])


def directions(make, steps: int) -> list[list[Copy]]:
    """The copies of each round, as the schedule made them."""
    schedule, seen = make(), []
    original = schedule.copies
    schedule.copies = lambda current: seen.append(original(current)) or seen[-1]
    train(lambda: schedule, DATA[:steps], attack(centred=False))
    return seen


def test_slot_takes_the_gradient_of_other_images() -> None:
    first, second = directions(lambda: Slot(weight=0.5), 2)
    assert first == []
    images, labels = DATA[0]
    for number, (copied, part) in enumerate(zip(second, cut(images, labels, 4), strict=True)):
        assert torch.equal(copied.images, DATA[1][0][4 * number : 4 * number + 4])
        own = written_out.gradient(network(), part, cross_entropy)
        assert torch.cosine_similarity(copied.direction(), flat(own), dim=0) > 0.9999


def test_lookahead_takes_the_gradient_of_the_same_images_at_older_weights() -> None:
    first, second = directions(Lookahead, 2)
    assert first == []
    for copied, part in zip(second, cut(*DATA[1], 4), strict=True):
        assert torch.equal(copied.images, part[0])
        own = written_out.gradient(network(), part, cross_entropy)  # at the first step's weights
        assert torch.cosine_similarity(copied.direction(), flat(own), dim=0) > 0.9999


def test_own_parts_in_the_sequential_form() -> None:
    model = network()
    optimizer = sgd(model)
    for images, labels in DATA:
        parts = cut(images, labels, 4)
        own = written_out.own_parts(
            [written_out.gradient(model, part, cross_entropy) for part in parts]
        )
        moved = [
            written_out.gradient_at(
                model,
                written_out.perturbation(model, c, 0.05, "layer"),
                part,
                cross_entropy,
            )
            for c, part in zip(own, parts, strict=True)
        ]
        written_out.update_with(model, [], moved, 1.0)
        optimizer.step()
    fast, _ = train(Sequential, DATA, attack(centred=True))
    # With two micro-batches the own parts are opposite: rounding shows more.
    assert_same_state(model, fast, rtol=1e-3, atol=1e-4)


def test_perturbations_have_their_radius() -> None:
    model, adversary = train(Recycled, DATA)
    space = adversary._passes.space
    direction = torch.randn(space.size)
    for radius in ("layer", "global"):
        steps = space.step(direction, 0.1, radius)
        norms = torch.stack([step.norm() for step in steps])
        weights = torch.stack([p.detach().norm() for p in model.parameters() if p.ndim >= 2])
        if radius == "layer":
            torch.testing.assert_close(norms, 0.1 * weights)
        else:
            assert norms.norm().item() == pytest.approx(0.1, rel=1e-5)
    assert all((step == 0).all() for step in space.step(torch.zeros(space.size), 0.1, "layer"))
    assert not any(t.requires_grad for t in pending(adversary))

"""Rounds that are collected by their backward pass: equal to the last bit to a call of collect."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import conadv
from support.loops import (
    ATTACK,
    EPSILON,
    MEAN,
    SCHEDULES,
    STD,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
Loop = Callable[[conadv.Adversary, nn.Module, Callable[[], None]], None]


def plainly(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    optimizer = sgd(model)
    for images, labels in adversary.batches(batches(5)):
        adversary.loss(images, labels, cross_entropy).backward()
        collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def bf16(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    optimizer = sgd(model)
    for images, labels in adversary.batches(batches(5)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adversary.loss(images, labels, cross_entropy)
        loss.backward()
        collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def fp16(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=256.0)
    for images, labels in adversary.batches(batches(5)):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = adversary.loss(images, labels, cross_entropy)
        scaler.scale(loss).backward()
        collect()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


def accumulated(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    optimizer = sgd(model)
    pieces = [p for x, y in batches(4) for p in zip(x.split(3), y.split(3), strict=True)]
    for number, (images, labels) in enumerate(adversary.batches(pieces)):
        adversary.loss(images, labels, cross_entropy, fraction=len(images) / 8).backward()
        collect()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


LOOPS: dict[str, Loop] = {"plain": plainly, "bf16": bf16, "fp16": fp16, "accumulated": accumulated}


def both(make: Any, loop: Loop, build: Callable[[], nn.Module] = network, **options: Any) -> None:
    """Train with collect() and without it; compare weights, buffers and what is pending."""
    nets, states, rounds = [], [], []
    for auto in (False, True):
        model = build()
        adversary = conadv.Adversary(model, ATTACK, make(), auto_collect=auto, **options)
        loop(adversary, model, (lambda: None) if auto else adversary.collect)
        nets.append(model)
        states.append(pending(adversary))
        rounds.append((adversary.images, adversary.compute, adversary.diagnostics.agreement))
    assert_same_state(*nets)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert rounds[0] == rounds[1]


@every_schedule
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_it_is_what_collect_gives(make, loop: Loop) -> None:
    both(make, loop)


@every_schedule
def test_with_the_agreement_measured(make) -> None:
    both(make, plainly, track_agreement=True)


class Checkpointed(nn.Module):
    """The test network, whose body is run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: torch.Tensor) -> Any:
        features = checkpoint(self.net[:6], images, use_reentrant=False)
        return self.net[6:](features)


@every_schedule
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_with_checkpointing(make, forward: str) -> None:
    both(make, plainly, Checkpointed, forward=forward)


@pytest.mark.parametrize("name", ["recycled", "lookahead"])
@pytest.mark.slow
def test_with_a_compiled_model(name: str) -> None:
    nets = []
    for auto in (False, True):
        model = network()
        compiled = torch.compile(model, backend="aot_eager")
        adversary = conadv.Adversary(compiled, ATTACK, name, auto_collect=auto)
        plainly(adversary, model, (lambda: None) if auto else adversary.collect)
        nets.append(model)
    assert_same_state(*nets)


def lbfgs(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=3)
    for images, labels in batches(4):

        def closure(images=images, labels=labels) -> torch.Tensor:
            optimizer.zero_grad()
            loss = adversary.loss(images, labels, cross_entropy)
            loss.backward()
            return loss

        optimizer.step(closure)
        collect()


def sam(adversary: conadv.Adversary, model: nn.Module, collect: Callable[[], None]) -> None:
    """A gradient at the weights, then one uphill of them, from the same images."""
    optimizer = sgd(model)
    for images, labels in batches(4):
        adversary.loss(images, labels, cross_entropy).backward()
        with torch.no_grad():
            steps = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
            for parameter, step in zip(model.parameters(), steps, strict=True):
                parameter += step
        optimizer.zero_grad()
        adversary.loss(images, labels, cross_entropy).backward()
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), steps, strict=True):
                parameter -= step
        collect()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", [n for n in SCHEDULES if not n.startswith("lookahead")])
@pytest.mark.parametrize("loop", [lbfgs, sam])
def test_a_closure_takes_one_round_however_often_it_is_evaluated(name: str, loop: Loop) -> None:
    both(SCHEDULES[name], loop)


@pytest.mark.parametrize("loop", [lbfgs, sam])
def test_lookahead_attacks_at_the_weights_of_the_last_evaluation(loop: Loop) -> None:
    """Before the step, which a call of collect after a closure's step cannot do."""
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "lookahead", auto_collect=True)
    original, made = adversary.loss, []

    def loss(*arguments):
        adversary.peek(*batches(1, seed=3)[0])
        found = original(*arguments)
        found.register_hook(lambda g: made.append([p.detach().clone() for p in model.parameters()]))
        return found

    adversary.loss = loss
    with pytest.warns(RuntimeWarning, match="Other images were attacked"):
        loop(adversary, model, lambda: None)
    assert adversary.images == 32 and len(made) >= 8
    left = pending(adversary)
    twin = network()
    for parameter, value in zip(twin.parameters(), made[-1], strict=True):
        parameter.data.copy_(value)
    other = conadv.Adversary(twin, ATTACK, "lookahead")
    other.peek(*batches(1, seed=3)[0])
    other.loss(*batches(1)[0], cross_entropy).backward()
    other.collect()
    assert torch.equal(left[0], pending(other)[0])


def test_the_same_images_after_a_step_are_another_round() -> None:
    """Whoever trains on one batch over and over is no closure."""
    model = network()
    adversary, optimizer = conadv.Adversary(model, ATTACK, auto_collect=True), sgd(model)
    images, labels = batches(1)[0]
    for number in range(3):
        adversary.loss(images, labels, cross_entropy).backward()
        assert (adversary.diagnostics.adversarial_loss is not None) == (number > 0)
        optimizer.step()
    assert adversary.images == 24


@every_schedule
def test_a_round_may_be_found_void_after_its_backward(make) -> None:
    nets = []
    for auto in (False, True):
        model = network()
        adversary, optimizer = (
            conadv.Adversary(model, ATTACK, make(), auto_collect=auto),
            sgd(model),
        )
        for number, (images, labels) in enumerate(adversary.batches(batches(6))):
            adversary.loss(images, labels, cross_entropy).backward()
            if number == 3:
                adversary.skip()
            elif not auto:
                adversary.collect()
            if number != 3:
                optimizer.step()
            optimizer.zero_grad()
        nets.append(model)
        assert adversary.images == 40
    assert_same_state(*nets)


def test_a_call_of_collect_is_allowed_beside_it() -> None:
    both(conadv.Recycled, plainly)
    model = network()
    adversary = conadv.Adversary(model, ATTACK, auto_collect=True)
    with pytest.raises(RuntimeError, match="without a loss"):
        adversary.collect()
    plainly(adversary, model, adversary.collect)
    assert adversary.images == 40


def test_a_gradient_of_some_parameters_is_not_the_rounds() -> None:
    """A penalty on the gradient, say: the round is collected by the backward that trains."""
    model = network()
    adversary = conadv.Adversary(model, ATTACK, auto_collect=True)
    loss = adversary.loss(*batches(1)[0], cross_entropy)
    (gradient,) = torch.autograd.grad(loss, model[0].weight, create_graph=True)
    assert adversary.schedule._pending == [] and adversary.images == 0
    (loss + gradient.square().sum()).backward()
    assert len(pending(adversary)) == 2 and adversary.images == 8


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_an_attack_with_random_numbers_draws_the_same() -> None:
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, random_start=0.8, target="random")
    states = []
    for auto in (False, True):
        model = network(dropout=0.3)
        adversary = conadv.Adversary(model, attack, "lookahead", auto_collect=auto)
        torch.manual_seed(5)
        plainly(adversary, model, (lambda: None) if auto else adversary.collect)
        states.append(model)
    assert_same_state(*states)

"""Copies of weights in a plan: operations, what comes before what, memory."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import conadv
from conadv import weights
from conadv.cli import main
from conadv.commands._plan_inputs import count_network, job_of, methods_of, own_schedule
from conadv.lab.planning import (
    Dealt,
    Job,
    Loader,
    Method,
    Rates,
    WeightMethod,
    count,
    deal,
    flat_link,
    memory_of,
    step_timing,
)
from conadv.lab.study.cost import compute_factor
from conadv.trainer.models.zoo import create_model
from conadv.trainer.probe.dry_run import dry_run
from conadv.trainer.recipe import load_recipe
from conadv.weights import WeightAdversary, WeightAttack
from support.runs import tiny

JOB = Job(2048, 32, 32, 50_000, epochs=10)
VANILLA = Method()
NETWORK = count(create_model("cifar/resnet8", 3, 10), (3, 32, 32))


def method(schedule: weights.WeightSchedule) -> WeightMethod:
    return WeightMethod(f"{schedule.name} weights", weights=schedule)


SEQUENTIAL = method(weights.Sequential())
RECYCLED = method(weights.Recycled())
BUDGET = method(weights.Recycled(budget="fixed"))
LOOKAHEAD = method(weights.Lookahead())


@pytest.mark.parametrize(
    ("planned", "factor"),
    [
        (SEQUENTIAL, 2),
        (RECYCLED, 2),
        (BUDGET, 1),
        (LOOKAHEAD, 2),
        (method(weights.Recycled(share=0.5)), 1.5),
        (method(weights.Sequential(share=0.5)), 1.5),
        (method(weights.Recycled(every=2)), 1.5),
        (method(weights.Lookahead(every=2)), 1.5),
        (method(weights.Slot()), 1),
        (method(weights.Noise()), 1),
    ],
)
def test_operations(planned: WeightMethod, factor: float) -> None:
    ratio = planned.operations(NETWORK) / VANILLA.operations(NETWORK)
    assert ratio == pytest.approx(factor, abs=1e-6)
    assert planned.fresh == (0.5 if planned is BUDGET else 1)


def test_time_follows_what_is_in_sequence() -> None:
    rates = Rates(NETWORK.train * 32, half_batch=8)  # a micro-batch's operations take a second
    streams = replace(rates, streams=True)

    def seconds(planned: Method, on: Rates = rates) -> float:
        return step_timing(NETWORK, JOB, planned, Dealt(32, 1), on, flat_link(math.inf), 1).device

    update = seconds(VANILLA) - 1.25
    assert seconds(SEQUENTIAL) == pytest.approx(2.5 + update)
    assert seconds(RECYCLED) == pytest.approx(2.5 + update), "two passes, each with its start"
    assert seconds(method(weights.Recycled(every=2))) == pytest.approx(1.875 + update)
    assert seconds(BUDGET) == pytest.approx(1.5 + update), "two passes of half the images"
    # What one pass leaves idle the other uses.
    assert seconds(LOOKAHEAD, streams) == pytest.approx(2 + update)


def test_memory() -> None:
    dealt = Dealt(32, 4)
    plain = memory_of(NETWORK, JOB, VANILLA, dealt)
    recycled = memory_of(NETWORK, JOB, RECYCLED, dealt)
    gradient, images = 2 * NETWORK.matrices, 4 * 32 * 3 * 32 * 32
    assert recycled.pending == 4 * (gradient + images)
    more = 32 * NETWORK.saved + NETWORK.saved_once + 4 * NETWORK.matrices
    assert recycled.activations == pytest.approx(plain.activations + more)
    seldom = memory_of(NETWORK, JOB, method(weights.Recycled(every=2)), dealt)
    assert seldom == recycled, "the step in turn decides"
    assert memory_of(NETWORK, JOB, LOOKAHEAD, dealt).pending == 4 * gradient
    sequential = memory_of(NETWORK, JOB, SEQUENTIAL, dealt)
    assert sequential.pending == 0
    # The ascent's graph is gone before the training pass makes its own.
    assert sequential.activations == pytest.approx(plain.activations + 4 * NETWORK.matrices)


def test_a_recipe_is_planned_as_it_trains() -> None:
    recipe = load_recipe("cifar10-5k-resnet9-2500-weights-recycled-budget")
    assert own_schedule(recipe) == "recycled-budget weights"
    found = methods_of(recipe)
    assert [m.schedule for m in found][:2] == ["vanilla", "sequential"]
    assert isinstance(found[-1], WeightMethod) and found[-1].fresh == 0.5
    assert count_network(recipe).matrices > 400_000


# -- beside copies of images -------------------------------------------------------------------

OF_IMAGES = {
    "vanilla": conadv.Vanilla,
    "sequential": conadv.Sequential,
    "lookahead": conadv.Lookahead,
    "recycled": conadv.Recycled,
    "recycled-budget": lambda: conadv.Recycled(share=0.25, budget="fixed"),
}
OF_WEIGHTS = {
    "sequential": weights.Sequential,
    "recycled": weights.Recycled,
    "recycled-budget": lambda: weights.Recycled(budget="fixed"),
    "lookahead": weights.Lookahead,
    "lookahead, mixed": lambda: weights.Lookahead(weight=0.5),
    "slot": lambda: weights.Slot(weight=0.5),
    "noise": lambda: weights.Noise(weight=0.5),
}


@pytest.mark.parametrize("of_images", OF_IMAGES)
@pytest.mark.parametrize("of_weights", OF_WEIGHTS)
def test_operations_are_those_of_a_real_step(of_images: str, of_weights: str) -> None:
    """The planner's sum of passes against torch's counter around the library's own step."""
    make, planned = OF_WEIGHTS[of_weights], Method(of_images, 0.25 if "-" in of_images else 1.0)
    if of_images == "lookahead" and "lookahead" in of_weights:
        return  # both cannot look ahead
    model = conadv.split_norms(small())
    inner = conadv.Adversary(model, conadv.Attack(0.1, pixel_range=None), OF_IMAGES[of_images]())
    adversary = WeightAdversary(model, WeightAttack(centred=False), make(), adversary=inner)
    fresh = adversary.fresh_images(16)
    images, labels = torch.randn(fresh, 3, 16, 16), torch.arange(fresh) % 10

    def step() -> None:
        adversary.peek(images, labels)
        adversary.loss(images, labels, nn.functional.cross_entropy).backward()
        adversary.collect()

    step()  # the first rounds have no copies yet
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    network = count(small(), (3, 16, 16), torch.float32)
    method = WeightMethod(weights=make(), beside=planned if inner.schedule.makes_copies else None)
    ordinary = 16 * network.train
    ratio = 16 * method.operations(network) / ordinary
    assert ratio == pytest.approx(counter.get_total_flops() / ordinary, abs=0.02)
    assert 16 * method.fresh == pytest.approx(fresh)
    assert method.work.compute == pytest.approx(adversary.diagnostics.compute / 16)


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


BOTH = [
    ("method.schedule=recycled", "weights.schedule=recycled"),
    ("method.schedule=recycled", "method.budget=fixed", "weights.schedule=slot"),
    ("method.schedule=lookahead", "weights.schedule=sequential"),
    ("method.schedule=sequential", "weights.schedule=recycled", "weights.budget=fixed"),
    ("method.schedule=vanilla", "weights.schedule=recycled", "weights.parameters=all"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("overrides", BOTH, ids=" ".join)
def test_memory_is_that_of_a_real_step(overrides: tuple[str, ...], precision, monkeypatch) -> None:
    # As on a GPU, on which plans are for: images and their copies in one forward.
    monkeypatch.setattr(conadv.Adversary, "_is_joint", lambda adversary, images: True)
    recipe = tiny(*overrides, f"hardware.precision={precision}")
    measured = dry_run(recipe).memory
    job, method, network = job_of(recipe, Loader()), methods_of(recipe)[-1], count_network(recipe)
    found = memory_of(network, job, method, deal(job, 1))
    assert found.pending == pytest.approx(measured.pending, rel=0.02)
    activations = found.activations
    if precision == "bf16":  # autograd keeps what w + e is cast to, not itself
        activations -= method.beside_weights(network)
    assert activations == pytest.approx(measured.activations, rel=0.02)


@pytest.mark.parametrize("overrides", BOTH, ids=" ".join)
def test_a_plan_and_a_study_count_the_same(overrides: tuple[str, ...]) -> None:
    recipe = tiny(*overrides)
    assert methods_of(recipe)[-1].work.compute == pytest.approx(compute_factor(recipe))


def test_what_is_beside_and_what_is_in_sequence() -> None:
    """Images look ahead on a stream, weights wait for their ascent."""
    both = WeightMethod(weights=weights.Sequential(), beside=Method("lookahead"))
    attack, ascent = both.extras(NETWORK)
    assert attack.ahead and not ascent.ahead and both.ahead
    rates = Rates(NETWORK.train * 32, half_batch=8)
    alone, beside = (
        step_timing(NETWORK, JOB, both, Dealt(32, 1), on, flat_link(math.inf), 1).device
        for on in (rates, replace(rates, streams=True))
    )
    start_of_attack = 0.25 * NETWORK.attack / NETWORK.train
    # The attack uses what the two training passes leave idle; the ascent has its start.
    assert alone - beside == pytest.approx(
        start_of_attack + min(0.5, alone - beside - start_of_attack)
    )
    assert alone > beside


def test_both_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    name = "cifar10-5k-resnet9-2500-weights-recycled"
    assert main(["plan", name, "method.schedule=recycled"]) == 0
    shown = capsys.readouterr().out
    assert "recycled weights + recycled, by number of devices" in shown
    rows = [m.schedule for m in methods_of(load_recipe(name, ["method.schedule=recycled"]))]
    assert rows == [
        "vanilla",
        "sequential",
        "lookahead",
        "recycled",
        "recycled-budget",
        "recycled weights + recycled",
    ]

"""Copies of weights in a plan: operations, what comes before what, memory."""

import math
from dataclasses import replace

import pytest

from conadv import weights
from conadv.commands._plan_inputs import check_parallel, count_network, methods_of, own_schedule
from conadv.errors import PlanError
from conadv.lab.planning import (
    Dealt,
    Job,
    Method,
    Rates,
    WeightMethod,
    count,
    flat_link,
    memory_of,
    step_timing,
)
from conadv.trainer.models.zoo import create_model
from conadv.trainer.recipe import load_recipe

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
    assert seconds(BUDGET) == pytest.approx(1.5 + update), "two passes of half the images"
    # What one pass leaves idle the other uses.
    assert seconds(LOOKAHEAD, streams) == pytest.approx(2 + update)


def test_memory() -> None:
    dealt = Dealt(32, 4)
    plain = memory_of(NETWORK, JOB, VANILLA, dealt)
    recycled = memory_of(NETWORK, JOB, RECYCLED, dealt)
    gradient, images = 2 * NETWORK.matrices, 4 * 32 * 3 * 32 * 32
    assert recycled.pending == 4 * (gradient + images)
    more = 32 * NETWORK.saved + 4 * NETWORK.matrices
    assert recycled.activations == pytest.approx(plain.activations + more)
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
    both = load_recipe("cifar10-5k-resnet9-2500-weights-recycled", ["method.schedule=recycled"])
    with pytest.raises(PlanError, match=r"method\.schedule=vanilla"):
        check_parallel(both)

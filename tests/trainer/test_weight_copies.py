"""Copies of weights in the trainer: recipes, runs, resuming, and what a recipe cannot ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import conadv
from conadv.errors import RecipeError
from conadv.lab.study.cost import compute_factor
from conadv.trainer.build import build
from conadv.trainer.distributed import World
from conadv.trainer.distributed.watchdog import NoWatchdog
from conadv.trainer.recipe import load_recipe
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny

ALONE = ("method.schedule=vanilla", "weights.rho=0.05")
COMPUTE = {
    "sequential": 2.0,
    "recycled": 2.0,
    "lookahead": 2.0,
    "slot": 1.0,
    "noise": 1.0,
}


@pytest.mark.parametrize("schedule", COMPUTE)
def test_a_run_of_every_schedule(schedule: str, tmp_path: Path) -> None:
    recipe = tiny(*ALONE, f"weights.schedule={schedule}", "train.steps=8")
    result = quietly(recipe, tmp_path / "run")
    assert result.status == "finished" and result.method == f"{schedule} weights"
    assert compute_factor(recipe) == COMPUTE[schedule]
    paid = final_state(tmp_path / "run")["trainer"]["compute"] / result.images_seen
    # The first step has no old gradients, the last ones nothing to look ahead to.
    assert COMPUTE[schedule] - 0.3 < paid <= COMPUTE[schedule]
    built = build(recipe)
    assert isinstance(built.adversary, conadv.WeightAdversary)
    assert built.adversary.rounds == 2 and built.of_images is built.adversary.adversary


def test_the_watchdog_knows_of_the_wait_for_the_mean() -> None:
    waits: list[int] = []

    class Counting(NoWatchdog):
        @contextmanager
        def waiting(self) -> Iterator[None]:
            waits[-1] += 1
            yield

    trainer = build(tiny(*ALONE, "weights.schedule=recycled"), World(watchdog=Counting())).trainer
    for _ in range(2):
        waits.append(0)
        trainer.train_step()
    assert waits[1] == waits[0] + 1, "for the first step's mean, in the second"


def test_a_fixed_budget_is_that_of_ordinary_training(tmp_path: Path) -> None:
    recipe = tiny(*ALONE, "weights.schedule=recycled", "weights.budget=fixed")
    assert recipe.fresh_per_step == 8 and recipe.batch.global_batch == 16
    assert compute_factor(recipe) == 1.0
    assert quietly(recipe, tmp_path / "run").images_seen == 6 * 8


@pytest.mark.parametrize(
    "overrides",
    [
        (*ALONE, "weights.schedule=recycled"),
        (*ALONE, "weights.schedule=recycled", "weights.every=2"),
        (*ALONE, "weights.schedule=lookahead", "weights.tau=2"),
        ("method.schedule=recycled", "weights.schedule=recycled", "weights.share=0.5"),
        ("method.schedule=lookahead", "weights.schedule=sequential"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tiny(*overrides)
    quietly(recipe, tmp_path / "unbroken")
    with pytest.raises(conadv.errors.Interrupted):
        quietly(recipe, tmp_path / "stopped", stop=StopAfter(3))
    quietly(recipe, tmp_path / "stopped", resume=True)
    before, after = (final_state(tmp_path / name) for name in ("unbroken", "stopped"))
    for part in ("trainer", "own"):
        assert_same_state(before[part], after[part], part)


def test_a_step_that_is_skipped_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = tiny(*ALONE, "weights.schedule=recycled", "train.nonfinite=skip", "train.steps=2")
    trainer = build(recipe).trainer
    trainer.train_step()
    before = trainer.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    criterion, trainer.criterion = trainer.criterion, lambda *a: criterion(*a) * float("nan")
    assert trainer.train_step().skipped
    assert_same_state(before, dict(trainer.model.state_dict()))
    pending = trainer.adversary.state_dict()["state"]["pending"]
    assert pending == [[], []]


def test_labels_and_costs_say_what_is_on() -> None:
    both = tiny("method.schedule=recycled", "weights.schedule=recycled")
    assert both.method_label == "recycled weights + recycled"
    assert compute_factor(both) == pytest.approx(3.0)
    late = tiny(*ALONE, "weights.schedule=recycled", "weights.weight=[[0.5, 0], [0.5, 0.5]]")
    assert compute_factor(late) == pytest.approx(1.5)
    seldom = tiny(*ALONE, "weights.schedule=recycled", "weights.every=2")
    assert seldom.method_label == "recycled weights, every 2 steps"
    assert compute_factor(seldom) == pytest.approx(1.5)
    assert tiny("method.schedule=vanilla").method_label == "vanilla"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("weights.tau=2",), "only lookahead has this setting"),
        (("weights.budget=fixed", "weights.schedule=slot"), "only recycled has this setting"),
        (("weights.schedule=recycled", "batch.micro_batch=16"), "one micro-batch of 16"),
        (("weights.schedule=sequential", "weights.centred=true"), "weights.centred=null"),
        (("weights.schedule=recycled", "weights.weight=1"), "weights.weight=1"),
        (
            ("weights.schedule=recycled", "weights.budget=fixed", "weights.every=2"),
            "weights.every=2 with budget='fixed'",
        ),
        (("weights.schedule=noise", "method.view=plain"), "weights.weight=0.5"),
        (("weights.schedule=recycled", "method.sam=sam"), "both move the weights"),
        (("weights.schedule=recycled", "hardware.parallel=fsdp"), "hardware.parallel=ddp"),
        (("weights.schedule=recycled", "optimizer.variance_reduction=true"), "not what its paper"),
        (
            ("weights.schedule=lookahead", "method.schedule=lookahead"),
            "only one of the two can look ahead",
        ),
    ],
)
def test_what_a_recipe_cannot_ask_for(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny("method.schedule=vanilla", *overrides)
    load_recipe("smoke")

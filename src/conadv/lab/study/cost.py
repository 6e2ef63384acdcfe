"""What a run costs, from its recipe alone: compute, and seconds at a given or measured speed."""

from dataclasses import dataclass, replace

from conadv.errors import StudyError
from conadv.lab.study.plan import Plan, Task
from conadv.trainer.input.random_images import images_of
from conadv.trainer.probe.dry_run import dry_run
from conadv.trainer.recipe import Recipe, piecewise
from conadv.trainer.recipe.updates import gradients

_POINTS = 100
"""Number of moments of training over which a schedule is averaged."""
START = 1.0
"""Seconds that a run takes besides steps and evaluations: data, network, files."""


def compute_factor(recipe: Recipe) -> float:
    """Mean compute of a step over ordinary training on ``batch.global_batch`` images.

    In units of one forward and backward of one image, of which an attack step is 2/3; schedules
    of shares are averaged over training.
    """
    share = piecewise(recipe.method.share)
    at = [(n + 0.5) / _POINTS for n in range(_POINTS)]
    mean = sum(share(p) if callable(share) else share for p in at) / _POINTS
    work = recipe.method.make().work(mean, recipe.attack.steps)
    work = replace(work, views=float(recipe.method.view != "none"))
    if not recipe.weights.on:
        return work.compute * gradients(recipe)
    beside = work if recipe.method.kind.makes_copies else None
    schedule = recipe.weights.make()
    return sum(schedule.work(p, beside).compute for p in at) / _POINTS


def work(recipe: Recipe) -> float:
    """Compute of a whole run, in forward and backward passes of one image."""
    steps = recipe.total_steps(images_of(recipe)[2])
    return steps * recipe.batch.global_batch * compute_factor(recipe)


@dataclass(frozen=True)
class CellCost:
    """What the runs of one cell come to."""

    cell: str
    trials: int
    """Confirmations too, which are as long."""
    finals: int
    trial_seconds: float
    """Seconds of one trial."""
    final_seconds: float
    """Seconds of one final run."""

    @property
    def seconds(self) -> float:
        """Seconds of all of them."""
        return self.trials * self.trial_seconds + self.finals * self.final_seconds


def estimate(plan: Plan, images_per_second: float | None = None) -> list[CellCost]:
    """How long the runs of every cell take on one worker.

    Args:
        plan: Of the study.
        images_per_second: Of ordinary training, forward and backward; None measures a step of
            every method and micro-batch on random images, on this machine.

    Raises:
        StudyError: The speed is not above 0.
    """
    if images_per_second is not None and not images_per_second > 0:
        raise StudyError(f"--images-per-second {images_per_second:g}: give a number above 0.")
    speed = _Speed(images_per_second)
    costs = []
    for cell in plan.cells:
        own = [task for task in plan.tasks if task.cell == cell]
        trials = [task for task in own if task.kind != "final"]
        finals = [task for task in own if task.kind == "final"]
        costs.append(
            CellCost(
                cell.name,
                len(trials),
                len(finals),
                _seconds(plan, trials[0], speed) if trials else 0.0,
                _seconds(plan, finals[0], speed),
            )
        )
    return costs


class _Speed:
    """Seconds per forward and backward pass of one image."""

    def __init__(self, images_per_second: float | None) -> None:
        self.given = images_per_second
        self._measured: dict[str, float] = {}

    def seconds_per_image(self, recipe: Recipe) -> float:
        """Seconds of a recipe's passes, attack and copies converted into their compute."""
        if self.given is not None:
            return 1 / self.given
        parts = (recipe.model, recipe.method, recipe.norm, recipe.attack.steps, recipe.optimizer)
        kind = f"{parts} {recipe.micro_batch} {recipe.norm_group} {recipe.hardware}"
        if kind not in self._measured:
            self._measured[kind] = dry_run(recipe, images=recipe.micro_batch).seconds_per_image
        return self._measured[kind]


def _seconds(plan: Plan, task: Task, speed: _Speed) -> float:
    recipe = plan.make_recipe(task)
    _, _, count = images_of(recipe)
    per_image = speed.seconds_per_image(recipe)
    looks = recipe.total_steps(count) / recipe.steps_per_epoch(count)
    looks = max(1.0, looks / recipe.evaluation.every_epochs)
    held_out = recipe.data.validation * count / (1 - recipe.data.validation)
    # A forward pass is a third of forward and backward; the test set's size is not known here and
    # counts as a fifth of the training set's, as is usual.
    seen = min(count, 10_000) + (count / 5 if recipe.evaluation.test else 0) + looks * held_out
    attacked = (recipe.evaluation.robust_images or count / 5) if recipe.evaluation.test else 0
    attack = attacked * (1 + max(1, recipe.evaluation.robust_steps))
    return START + per_image * (work(recipe) + seen / 3 + attack)

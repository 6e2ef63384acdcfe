"""Small studies, and runs that are made up."""

from pathlib import Path
from typing import Any

from rich.console import Console

from conadv.lab.study import Plan, Study, StudyFolder, make_plan
from conadv.lab.study.files import make_study
from conadv.lab.study.worker import Worker
from conadv.trainer.recipe import Recipe
from conadv.trainer.run.result import Result
from conadv.trainer.run.signals import StopRequest

TINY_IMAGES: dict[str, Any] = {
    "data.synthetic.size": 8,
    "data.synthetic.classes": 2,
    "data.synthetic.train_images": 64,
    "data.synthetic.test_images": 16,
    "evaluation.robust_images": 8,
    "evaluation.robust_steps": 0,
    "checkpoint.every_minutes": None,
    "hardware.device": "cpu",
}


def study(**changes: Any) -> Study:
    """Two methods at one batch, two trials, two seeds; keys with ``__`` reach inside."""
    values: dict[str, Any] = {
        "recipe": "smoke",
        "settings": {**TINY_IMAGES, "train.steps": 3},
        "methods": {
            "vanilla": {"settings": {"method.schedule": "vanilla"}},
            "recycled": {"settings": {"method.schedule": "recycled"}},
        },
        "batches": [16],
        "tuning": {
            "trials": 2,
            "validation": 0.25,
            "space": {
                "optimizer.lr": {"low": "1/4", "high": 4, "relative": True},
                "attack.epsilon": {"low": "1/255", "high": "8/255", "methods": "adversarial"},
            },
        },
        "final": {"seeds": [0, 1]},
        "stale_after": 30,
    }
    for name, value in changes.items():
        *places, last = name.split("__")
        inner = values
        for place in places:
            inner = inner[place]
        inner[last] = value
    return make_study(values, "tiny", "tiny")


def prepared(tmp_path: Path, given: Study | None = None) -> tuple[StudyFolder, Plan]:
    """A study folder and what is to be done in it."""
    folder = StudyFolder(tmp_path / "study")
    own = folder.prepare(given or study())
    return folder, make_plan(own, folder.root)


class FakeTraining:
    """Stands for training: notes what it is asked for, and answers at once.

    Validation accuracy is best at the recipe's own learning rate; the test's is always 0.5.
    """

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.folders: list[Path] = []

    def __call__(
        self, recipe: Recipe, out: Path, *, resume: bool, console: Console, stop: StopRequest
    ) -> Result:
        assert resume
        self.recipes.append(recipe)
        self.folders.append(out)
        return result_of(recipe)


def result_of(recipe: Recipe) -> Result:
    """As training leaves it."""
    off = abs(recipe.optimizer.lr - 2.0) / 10
    held_out = recipe.data.validation > 0
    return Result(
        name=recipe.name,
        status="finished",
        dataset=recipe.data.dataset,
        model=recipe.model.name,
        method=recipe.method_label,
        schedule=recipe.method.schedule,
        global_batch=recipe.batch.global_batch,
        seed=recipe.seed,
        steps=3,
        images_seen=48,
        compute=48.0,
        step_seconds_median=0.01,
        train_accuracy=0.9,
        val_accuracy=0.9 - off if held_out else None,
        test_accuracy=0.5 if recipe.evaluation.test else None,
        robust_accuracy=0.4 if recipe.evaluation.test else None,
    )


def worker(folder: StudyFolder, make: Any, **options: Any) -> Worker:
    """A worker without output that makes up its runs."""
    return Worker(folder.root, console=Console(quiet=True), make=make, poll=0.01, **options)

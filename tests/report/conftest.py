"""Run folders as the trainer leaves them, made up for the tests of the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECIPE = """\
# A comment that the page keeps.
name: {name}
data: {{dataset: toy-images, validation: 0.1}}
model: {{name: toy-net}}
batch: {{global_batch: {batch}}}
method: {{schedule: {schedule}, budget: {budget}}}
attack: {{epsilon: 4/255}}
optimizer: {{lr: {lr}}}
evaluation: {{robust_steps: 0}}
"""
COST = {"vanilla": 1.0, "recycled": 2.0, "sequential": 8 / 3}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder; keywords replace values of ``result.json``."""

    def make(
        name: str = "run",
        *,
        schedule: str = "vanilla",
        batch: int = 100,
        budget: str = "extra",
        steps: int = 20,
        lr: float = 1.0,
        pictures: bool = False,
        **result: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        recipe = RECIPE.format(name=name, batch=batch, schedule=schedule, budget=budget, lr=lr)
        (folder / "recipe.yaml").write_text(recipe)
        cost = COST.get(schedule, 1.0)
        values = {
            "name": name,
            "status": "finished",
            "dataset": "toy-images",
            "model": "toy-net",
            "method": schedule,
            "schedule": schedule,
            "global_batch": batch,
            "seed": 0,
            "steps": steps,
            "images_seen": steps * batch,
            "compute": steps * batch * cost,
            "step_seconds_median": 0.1 * cost,
            "train_accuracy": 0.9,
            "val_accuracy": 0.8,
            "test_accuracy": 0.8,
            "robust_accuracy": 0.2,
        }
        (folder / "result.json").write_text(json.dumps(values | result))
        environment = {
            "command": f"conadv train {name}",
            "versions": {"torch": "2.9.0"},
            "hardware": {"processor": "Abacus 9000", "cores": 2, "memory": 8 * 2**30},
        }
        (folder / "environment.json").write_text(json.dumps(environment))
        with (folder / "metrics.jsonl").open("w") as metrics:
            for step in range(1, steps + 1):
                line: dict[str, Any] = {
                    "kind": "train",
                    "step": step,
                    "epoch": step / 10,
                    "loss": 2 / step,
                    "clean_loss": 1 / step,
                    "accuracy": 1 - 1 / step,
                    "compute": step * batch * cost,
                }
                metrics.write(json.dumps(line) + "\n")
                if step % 5 == 0:
                    line = {"kind": "eval", "step": step, "epoch": step / 10}
                    line |= {"val_loss": 1.0, "val_accuracy": 0.5}
                    metrics.write(json.dumps(line) + "\n")
        with (folder / "timing.jsonl").open("w") as timing:
            for step in range(1, steps + 1):
                timing.write(json.dumps({"step": step, "seconds": 0.1 * cost}) + "\n")
        if pictures:
            write_pictures(folder / "pictures.npz")
        return folder

    return make


@pytest.fixture
def four_runs(make_run: MakeRun) -> list[Path]:
    """What a quickstart leaves: a small batch, and a large one three ways."""
    return [
        make_run("small", batch=100, test_accuracy=0.88, train_accuracy=0.9, method="small batch"),
        make_run("vanilla", batch=1000, test_accuracy=0.82, train_accuracy=0.89),
        make_run(
            "sequential", schedule="sequential", batch=1000, test_accuracy=0.81, pictures=True
        ),
        make_run(
            "recycled",
            schedule="recycled",
            batch=1000,
            test_accuracy=0.85,
            val_accuracy=0.86,
            robust_accuracy=0.5,
            pictures=True,
        ),
    ]


def write_pictures(path: Path, n: int = 3) -> None:
    """Ramps, changed by four grey levels."""
    clean = np.tile(np.arange(100, 108, dtype=np.uint8), (n, 8, 1))[..., None]
    change = np.where(np.arange(8) % 2, 4, -4).astype(np.int16)[None, None, :, None]
    perturbation = np.broadcast_to(change, clean.shape)
    adversarial = (clean + perturbation).astype(np.uint8)
    labels = np.arange(n)
    np.savez(path, clean=clean, perturbation=perturbation, adversarial=adversarial, labels=labels)

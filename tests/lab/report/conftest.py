"""Run folders as the trainer leaves them, made up for the tests of the report."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

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
MakeStudy = Callable[..., Path]

# Method: schedule, further settings, gain over ordinary training at batch 1,000 and 4,000, compute.
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, float], float]] = {
    "vanilla": ("vanilla", {}, (0.0, 0.0), 1.0),
    "vanilla-2x": ("vanilla", {"train": {"steps_factor": 2}}, (0.01, 0.02), 2.0),
    "vanilla-4x": ("vanilla", {"train": {"steps_factor": 4}}, (0.015, 0.04), 4.0),
    "recycled": ("recycled", {}, (0.016, 0.01), 2.0),
    "sequential": ("sequential", {}, (-0.02, 0.01), 8 / 3),
    "sam": ("vanilla", {"method": {"sam": "sam"}}, (0.002, 0.03), 2.0),
}
VANILLA = {100: 0.9, 1000: 0.885, 4000: 0.82}


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
        settings: Mapping[str, Any] | None = None,
        **result: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        recipe = RECIPE.format(name=name, batch=batch, schedule=schedule, budget=budget, lr=lr)
        if settings:
            whole = yaml.safe_load(recipe)
            for section, values in settings.items():
                whole[section] = whole.get(section, {}) | values
            recipe = yaml.safe_dump(whole)
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
def make_study(make_run: MakeRun, tmp_path: Path) -> MakeStudy:
    """Write a study folder: ordinary training at three batches, five more methods at two."""

    def make(
        name: str = "a-study", *, methods: Mapping[str, Any] = METHODS, failed: tuple[str, ...] = ()
    ) -> Path:
        folder = tmp_path / name
        rows, tuned = [], {}
        for method, (schedule, settings, gained, cost) in methods.items():
            for batch, usual in VANILLA.items():
                if batch == 100 and method != "vanilla":
                    continue
                gain = 0.0 if batch == 100 else gained[0 if batch == 1000 else 1]
                cell = f"{method}-b{batch}"
                longer = method != "vanilla" and schedule == "vanilla" and "train" in settings
                tuned[cell] = (
                    {"tuned_as": f"vanilla-b{batch}"} if longer else tuned_cell(usual + gain + 0.01)
                )
                for seed in range(3):
                    row = {"cell": cell, "method": method, "label": method, "batch": batch}
                    row |= {"seed": seed, "status": "finished", "message": None}
                    row |= {"folder": f"runs/{cell}/seed-{seed}", "command": f"conadv train {cell}"}
                    rows.append(row)
                    place = folder / row["folder"]
                    if f"{cell}/seed-{seed}" in failed:
                        row |= {"status": "failed", "message": "RuntimeError: out of luck"}
                        continue
                    made = make_run(
                        f"{cell}-{seed}",
                        schedule=schedule,
                        batch=batch,
                        settings=settings,
                        method=method,
                        seed=seed,
                        test_accuracy=usual + gain + 0.001 * (seed - 1),
                        train_accuracy=0.99 if batch < 4000 else 0.9,
                        train_loss=0.03 if batch < 4000 else 0.4,
                        robust_accuracy=0.5 + 5 * gain,
                        val_accuracy=None,
                        compute=2000.0 * cost,
                    )
                    place.parent.mkdir(parents=True, exist_ok=True)
                    made.rename(place)
        (folder / "summary.json").write_text(json.dumps({"study": name, "runs": rows}))
        (folder / "tuned.json").write_text(json.dumps({"study": name, "cells": tuned}))
        definition = {
            "name": name,
            "description": "What does a large batch cost?",
            "batches": {batch: {} for batch in VANILLA},
            "methods": {
                method: {"batches": None if method == "vanilla" else [1000, 4000]}
                for method in methods
            },
            "final": {"seeds": [0, 1, 2]},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(definition))
        return folder

    return make


def tuned_cell(accuracy: float) -> dict[str, Any]:
    """What ``tuned.json`` says of one setting."""
    values = {"optimizer.lr": 4.0, "attack.epsilon": 1 / 255}
    return {
        "chosen": values,
        "val_accuracy": accuracy,
        "at_the_edge": ["optimizer.lr"],
        "trials": [
            {"number": 0, "values": values, "accuracy": accuracy, "message": None},
            {"number": 1, "values": values, "accuracy": 0.1, "message": "it diverged"},
        ],
    }


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

"""Time and size of the report of a large study.

    python benchmarks/report_speed.py --json benchmarks/results/report-speed-cpu.json

A study of 200 final runs (10 methods, 4 batches, 5 seeds) is made up on disk, with curves of 500
steps, pictures, analyses and tuned settings, and the command makes its page, Markdown and table.
The bars are 20 s and 10 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conadv.trainer.recipe import dump_recipe, load_recipe
from conadv.trainer.run import environment as machine

SCHEDULES = ("vanilla", "noise", "sequential", "lookahead", "recycled")
BATCHES = (100, 500, 2500, 5000)
STEPS, SEEDS = 500, 5


def make_study(folder: Path) -> int:
    """Write the study; the number of its runs."""
    chance = random.Random(0)
    rows: list[dict[str, Any]] = []
    tuned: dict[str, Any] = {}
    for i in range(10):
        schedule, method = SCHEDULES[i % 5], f"{SCHEDULES[i % 5]}-{'ab'[i // 5]}"
        for batch in BATCHES:
            cell = f"{method}-b{batch}"
            values = {"optimizer.lr": 4.0, "attack.epsilon": 0.004}
            trials = [{"number": n, "values": values, "accuracy": 0.8} for n in range(8)]
            tuned[cell] = {"chosen": values, "val_accuracy": 0.8, "trials": trials}
            for seed in range(SEEDS):
                place = f"runs/{cell}/seed-{seed}"
                rows.append(
                    {"cell": cell, "method": method, "label": method, "batch": batch, "seed": seed}
                    | {"status": "finished", "folder": place, "command": f"conadv train {cell}"}
                )
                make_run(folder / place, method, schedule, batch, seed, chance)
    (folder / "summary.json").write_text(json.dumps({"study": "made-up", "runs": rows}))
    (folder / "tuned.json").write_text(json.dumps({"study": "made-up", "cells": tuned}))
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "made-up", "batches": [*BATCHES]}))
    return len(rows)


def make_run(
    out: Path, method: str, schedule: str, batch: int, seed: int, chance: random.Random
) -> None:
    """Write one run folder as the trainer leaves it."""
    out.mkdir(parents=True)
    recipe = load_recipe(
        "fashion-resnet8-vanilla",
        [f"method.schedule={schedule}", f"method.label={method}", f"seed={seed}"],
    )
    (out / "recipe.yaml").write_text(dump_recipe(recipe))
    accuracy = 0.9 - batch / 1e5 + chance.gauss(0, 0.003)
    result = {
        "name": method,
        "status": "finished",
        "dataset": "made-up",
        "model": "cifar/resnet8",
        "method": method,
        "schedule": schedule,
        "global_batch": batch,
        "seed": seed,
        "steps": STEPS,
        "images_seen": STEPS * batch,
        "compute": STEPS * batch * (1.0 if schedule == "vanilla" else 2.0),
        "step_seconds_median": batch * 1e-4,
        "train_accuracy": accuracy + 0.05,
        "val_accuracy": None,
        "test_accuracy": accuracy,
        "robust_accuracy": accuracy - 0.2,
        "train_loss": 1 - accuracy,
        "test_loss": 1.2 - accuracy,
    }
    (out / "result.json").write_text(json.dumps(result))
    environment = {"versions": {"torch": "2.9"}, "hardware": {"processor": "none", "cores": 2}}
    (out / "environment.json").write_text(json.dumps(environment))
    with (out / "metrics.jsonl").open("w") as metrics, (out / "timing.jsonl").open("w") as timing:
        for step in range(1, STEPS + 1):
            line: dict[str, Any] = {"kind": "train", "step": step, "epoch": step / 20}
            line |= {"loss": 2 / step, "clean_loss": 1 / step, "accuracy": 1 - 1 / step}
            line |= {"learning_rate": 1.0, "compute": step * batch}
            line |= {"adversarial_loss": chance.random()}
            metrics.write(json.dumps(line) + "\n")
            timing.write(json.dumps({"step": step, "seconds": batch * 1e-4}) + "\n")
    images = np.random.default_rng(seed).integers(0, 255, (8, 28, 28, 1), dtype=np.uint8)
    np.savez(out / "pictures.npz", clean=images, adversarial=images // 2)
    curve = {"branch": "clean", "attack": "pgd", "epsilons": [0, 0.01], "accuracies": [0.9, 0.5]}
    line_ = {"positions": [-1, 0, 1], "losses": [2.0, 0.1, 2.0]}
    analyses = {
        "gap": {"result": {"accuracy_gap": 0.05}},
        "robustness": {"result": {"curves": [curve]}},
        "landscape": {"result": {"lines": [line_]}},
    }
    (out / "analysis.json").write_text(json.dumps({"analyses": analyses}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        folder.mkdir()
        runs = make_study(folder)
        page, markdown, table = (Path(name) / f"report.{end}" for end in ("html", "md", "csv"))
        command = [sys.executable, "-m", "conadv", "report", str(folder), "--out", str(page)]
        command += ["--markdown", str(markdown), "--csv", str(table)]
        seconds = []
        for _ in range(given.rounds):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - began, 2))
            print(f"{runs} runs: {seconds[-1]} s, {page.stat().st_size / 1e6:.2f} MB", flush=True)
        found = {
            "runs": runs,
            "seconds": {"median": statistics.median(seconds), "all": seconds, "bar": 20},
            "megabytes": {
                "page": round(page.stat().st_size / 1e6, 2),
                "markdown": round(markdown.stat().st_size / 1e6, 3),
                "csv": round(table.stat().st_size / 1e6, 3),
                "bar": 10,
            },
        }
    result = {"environment": machine.environment(), **found}
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    within = found["seconds"]["median"] <= 20 and found["megabytes"]["page"] <= 10
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())

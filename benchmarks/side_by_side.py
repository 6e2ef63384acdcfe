"""Two trainings on the same cores: how much does each lose, and what helps?

    python benchmarks/side_by_side.py --json benchmarks/results/side-by-side-cpu.json

Fair sharing costs each a factor of 2; the goal is 2.5. Alone and side by side alternate: with a
thread on each core as they start by themselves, with threads that sleep while they wait for one
another instead of spinning, and with one thread each. Processor time stands beside wall time: what
is spun away shows there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _result import load, processor_seconds, write_result

from conadv.trainer.run import environment as machine

GOAL = 2.5
SKIP = 5
"""Steps at both ends that are not counted: one process starts or ends before the other."""
DEFAULT = "a thread on each core"
WAYS: dict[str, tuple[dict[str, str], list[str]]] = {
    DEFAULT: ({}, []),
    "threads that sleep": ({"OMP_WAIT_POLICY": "passive"}, []),
    "one thread": ({}, ["hardware.threads=1"]),
}
"""Environments and overrides."""
UNSET = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
)


def train_together(count: int, way: str, model: str, batch: int, steps: int) -> dict[str, float]:
    """Start so many trainings at once; what a step takes and a training uses."""
    added, overrides = WAYS[way]
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | added
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(n) for n in range(count)]
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "conadv", "train", "fashion-resnet8-vanilla"),
                    *("--out", str(out), f"model.name={model}", f"batch.global_batch={batch}"),
                    *("batch.micro_batch=null", "batch.norm_group=null", "train.epochs=null"),
                    *(f"train.steps={steps}", "lr_schedule.warmup_epochs=0"),
                    *("evaluation.test=false", "evaluation.every_epochs=1000"),
                    *("logging.loggers=[]", *overrides),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for out in outs
        ]
        before = processor_seconds()
        for process in started:
            _, said = process.communicate()
            if process.returncode != 0:
                raise SystemExit(f"conadv train failed:\n{said[-3000:]}")
        used = (processor_seconds() - before) / count
        walls = [step_seconds(out / "timing.jsonl") for out in outs]
    return {"step": statistics.median(walls), "processor": used}


def step_seconds(timing: Path) -> float:
    """The median time of a step, both ends of the run left out."""
    lines = [json.loads(line)["seconds"] for line in timing.read_text().splitlines()]
    return statistics.median(lines[SKIP:-SKIP])


def measure(model: str, batch: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Every way, alone and side by side, in turn."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(rounds):
        for way in WAYS:
            for count in (1, 2):
                one = train_together(count, way, model, batch, steps)
                found.setdefault((way, count), []).append(one)
                print(f"round {number + 1}, {way}, {count} at once: {one}", flush=True)

    def column(way: str, count: int, name: str) -> list[float]:
        return [one[name] for one in found[way, count]]

    def over_alone(way: str, count: int, name: str) -> dict[str, float]:
        pairs = zip(column(way, count, name), column(DEFAULT, 1, name), strict=True)
        return machine.spread([taken / alone for taken, alone in pairs])

    return [
        {
            **{"way": way, "model": model, "batch": batch, "steps": steps, "goal": GOAL},
            "step_seconds_alone": column(way, 1, "step"),
            "step_seconds_beside": column(way, 2, "step"),
            "slower_alone": over_alone(way, 1, "step"),
            "slower_beside": over_alone(way, 2, "step"),
            "processor_time": over_alone(way, 2, "processor"),
        }
        for way in WAYS
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print how much each loses, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar/resnet8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    before = load()
    rows = measure(given.model, given.batch, given.steps, given.rounds)
    for row in rows:
        print(
            f"{row['way']}: {row['slower_alone']['median']:.2f}x alone, each "
            f"{row['slower_beside']['median']:.2f}x side by side, "
            f"{row['processor_time']['median']:.2f}x the processor time"
        )
    write_result(given.json, {"rows": rows}, before)


if __name__ == "__main__":
    main()

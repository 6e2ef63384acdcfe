"""Two trainings on the same cores, each with its default threads: how much does each lose?

    python benchmarks/side_by_side.py --json benchmarks/results/side-by-side-cpu.json

Fair sharing costs each a factor of 2; the goal is 2.5. Alone and side by side alternate, as
`conadv` starts (its threads give a core away soon, see `conadv.cli`) and as the OpenMP library has
it by itself (threads spin while they wait). Processor time stands beside wall time: what is spun
away shows there.
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

from conadv.cli import WAITING
from conadv.trainer.run import environment as machine

GOAL = 2.5
SKIP = 5
"""Steps at both ends that are not counted: one process starts or ends before the other."""
WAYS: dict[str, dict[str, str]] = {
    "conadv": {},
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
}
"""Environments. The second is what libgomp and Intel's library do where nothing is set."""
UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *WAITING)


def train_together(count: int, way: str, model: str, batch: int, steps: int) -> dict[str, float]:
    """Start so many trainings at once; medians over them of the time of a step."""
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(n) for n in range(count)]
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "conadv", "train", "fashion-resnet8-vanilla"),
                    *("--out", str(out), f"model.name={model}", f"batch.global_batch={batch}"),
                    *("batch.micro_batch=null", "batch.norm_group=null", "train.epochs=null"),
                    *(f"train.steps={steps}", "lr_schedule.warmup_epochs=0"),
                    *(
                        "evaluation.test=false",
                        "evaluation.every_epochs=1000",
                        "logging.loggers=[]",
                    ),
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
        used = processor_seconds() - before
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
    rows = []
    for way in WAYS:
        pairs = list(zip(found[way, 2], found[way, 1], strict=True))
        rows.append(
            {
                "way": way,
                "model": model,
                "batch": batch,
                "steps": steps,
                "step_seconds_alone": [alone["step"] for _, alone in pairs],
                "step_seconds_beside": [both["step"] for both, _ in pairs],
                "slower": machine.spread([both["step"] / alone["step"] for both, alone in pairs]),
                "processor_time": machine.spread(
                    [both["processor"] / 2 / alone["processor"] for both, alone in pairs]
                ),
                "goal": GOAL if way == "conadv" else None,
            }
        )
    return rows


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
            f"{row['way']}: each {row['slower']['median']:.2f}x slower, "
            f"{row['processor_time']['median']:.2f}x the processor time"
        )
    write_result(given.json, {"rows": rows}, before)


if __name__ == "__main__":
    main()

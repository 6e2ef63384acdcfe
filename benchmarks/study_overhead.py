"""What `conadv study` adds to the time of its runs.

    python benchmarks/study_overhead.py --json benchmarks/results/study-overhead-cpu.json

A study of two methods on the embedded images is made from nothing by the command itself. Its wall
time, with the start of the command and of its worker, the search, claims and tables, is compared
with the time that the worker spent inside of the runs. That is the strict way to count: the same
runs as separate commands would each import PyTorch anew, which is not counted against them here.
The bar is 2 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from conadv.trainer.run import environment as machine

BAR = 0.02


def study(epochs: float, trials: int, seeds: int) -> dict[str, Any]:
    """Two methods at one batch."""
    schedules = ("vanilla", "recycled")
    return {
        "name": "overhead",
        "recipe": "fashion-resnet8-vanilla",
        "settings": {"train.epochs": epochs, "evaluation.every_epochs": 1000},
        "methods": {name: {"settings": {"method.schedule": name}} for name in schedules},
        "batches": [500],
        "tuning": {"trials": trials},
        "final": {"seeds": list(range(seeds))},
    }


def measure(epochs: float, trials: int, seeds: int) -> dict[str, Any]:
    """Run it once, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        asked, folder = Path(name) / "overhead.yaml", Path(name) / "study"
        asked.write_text(yaml.safe_dump(study(epochs, trials, seeds)))
        command = [sys.executable, "-m", "conadv", "study", str(asked), "--out", str(folder)]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        tasks = [path.parent for path in folder.glob("tasks/*/*/outcome.json")]
        outcomes = [json.loads((t / "outcome.json").read_text()) for t in tasks]
        claimed = [json.loads((t / "claim-0.json").read_text())["time"] for t in tasks]
    inside = sum(outcome["seconds"] for outcome in outcomes)
    # From the first claim to the last, less the runs in between: what is done around each run.
    last = outcomes[claimed.index(max(claimed))]
    between = max(claimed) - min(claimed) - (inside - last["seconds"])
    around = between / (len(tasks) - 1)
    return {
        "runs": len(outcomes),
        "finished": sum(outcome["status"] == "finished" for outcome in outcomes),
        "wall_seconds": round(wall, 2),
        "run_seconds": round(inside, 2),
        "overhead": round(wall / inside - 1, 5),
        "seconds_around_a_run": round(around, 4),
        "seconds_once": round(wall - inside - around * len(outcomes), 2),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    found = measure(given.epochs, given.trials, given.seeds)
    settings = {"epochs": given.epochs, "trials": given.trials, "seeds": given.seeds}
    result = {"environment": machine.environment(), "settings": settings, "bar": BAR, **found}
    print(json.dumps(result, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if found["overhead"] <= BAR and found["finished"] == found["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())

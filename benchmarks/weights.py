"""What copies of weights cost: a step of each schedule, and the perturbation itself.

    python benchmarks/weights.py --json benchmarks/results/weights-cpu.json

A step with moved weights is passes of ordinary training with other tensors, so its time should be
that of its passes, and the perturbation (e, w + e) a small share of a step. The schedules and the
perturbation take turns, and each is divided by the step of ordinary training of the same turn: a
machine that slows down for a while slows both. Beside wall time stands the processor time of this
process, which other programs on the machine disturb less; on a CPU it is the one that is judged.

Goals: steps within 8 % of their operations, the perturbation at most 3 % of a step. Exit code 1 if
one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _result import Seconds, ratios, timed

from conadv import weights
from conadv.lab.bench.stepper import Settings, Stepper
from conadv.trainer.run import environment as machine

SCHEDULES: dict[str, Callable[[], weights.WeightSchedule]] = {
    "none": weights.WeightSchedule,
    "sequential": weights.Sequential,
    "recycled": weights.Recycled,
    "recycled-budget": lambda: weights.Recycled(budget="fixed"),
}
PERTURBATION = "perturbation"
SHARE_BAR = 0.03
"""Largest median share of the perturbation in a step."""
STEP_BAR = 0.08
"""How far the median of a step may be from its operations."""


def perturb(stepper: Stepper) -> Callable[[], object]:
    """Makes w + e for all of a model's matrices."""
    passes = stepper.adversary._passes
    generator = torch.Generator(passes.space.device).manual_seed(0)
    direction = torch.randn(passes.space.size, generator=generator, device=passes.space.device)
    direction = direction.to(stepper.adversary.attack.dtype)
    return lambda: passes.moved(direction, 0.0)


def run(settings: Settings, repeats: int, warmup: int = 1) -> dict[str, Any]:
    """Measure; the medians are over so many turns."""
    device = torch.device(settings.device)
    steppers = {name: Stepper(settings, make()) for name, make in SCHEDULES.items()}
    cells: dict[str, Callable[[], object]] = {n: s.step for n, s in steppers.items()}
    cells[PERTURBATION] = perturb(steppers["none"])
    found: dict[str, list[Seconds]] = {name: [] for name in cells}
    for turn in range(warmup + repeats):
        for name in cells if turn % 2 == 0 else reversed(cells):
            seconds = timed(cells[name], device)
            if turn >= warmup:
                found[name].append(seconds)
    rows = [
        {
            "schedule": name,
            "operations": schedule().work(0.0).compute,
            **ratios(found[name], found["none"]),
        }
        for name, schedule in SCHEDULES.items()
    ]
    result = {
        "rows": rows,
        PERTURBATION: ratios(found[PERTURBATION], found["none"]),
        "step_seconds": machine.spread([wall for wall, _ in found["none"]]),
        "weights": steppers["none"].adversary._passes.space.size,
        "settings": {**vars(settings), "repeats": repeats, "warmup": warmup},
        "load": os.getloadavg(),
        "environment": machine.environment(settings.device),
    }
    return result | {"missed": judge(result, "wall" if device.type == "cuda" else "processor")}


def judge(result: dict[str, Any], kind: str) -> list[str]:
    """One sentence for each goal that is missed, by wall or processor time."""
    missed = [
        f"a step of {row['schedule']} takes {row[kind]['median']:.2f} of ordinary training, its "
        f"operations are {row['operations']:.2f}"
        for row in result["rows"]
        if abs(row[kind]["median"] / row["operations"] - 1) > STEP_BAR
    ]
    share = result[PERTURBATION][kind]["median"]
    if share > SHARE_BAR:
        missed.append(f"the perturbation takes {share:.1%} of a step")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar/resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    settings = Settings(
        options.model,
        options.batch,
        image_size=options.image_size,
        device=options.device,
        dtype=options.dtype,
    )
    result = run(settings, options.repeats)
    for row in [*result["rows"], {"schedule": PERTURBATION, **result[PERTURBATION]}]:
        shown = "   ".join(
            f"{kind} {row[kind]['median']:.3f} ({row[kind]['least']:.3f}-{row[kind]['most']:.3f})"
            for kind in ("wall", "processor")
        )
        print(f"{row['schedule']:16} {shown}")
    print(f"{result['weights']:,} weights moved, load {result['load'][0]:.1f}")
    print("goals MISSED: " + "; ".join(result["missed"]) if result["missed"] else "goals met")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(result["missed"]))


if __name__ == "__main__":
    sys.exit(main())

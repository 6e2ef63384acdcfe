"""Share of a training step that perturbing weights takes: e, w + e, and letting go of them.

    python benchmarks/weights.py --json benchmarks/results/weights-cpu.json

A step with moved weights is one of ordinary training with other tensors, so what it costs beyond
its passes is the perturbation itself. Steps and perturbations alternate, and each is divided by the
step before it: a machine that slows down for a while slows both. The load of the machine is in the
result; figures of a busy one say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from conadv.lab.bench.stepper import Settings, Stepper
from conadv.schedules import Vanilla
from conadv.trainer.probe.memory import synchronise
from conadv.trainer.run import environment as machine
from conadv.weights import WeightAttack
from conadv.weights.space import WeightSpace

BAR = 0.03
"""Largest median share."""


def run(settings: Settings, repeats: int, warmup: int = 2) -> dict[str, Any]:
    """Measure; the medians are over so many pairs of a step and a perturbation."""
    stepper = Stepper(settings, Vanilla())
    space, attack = WeightSpace(stepper.adversary.model, "matrices"), WeightAttack()
    device = torch.device(settings.device)
    direction = torch.randn(space.size, device=device).to(attack.dtype)
    steps, shares = [], []
    for repeat in range(warmup + repeats):
        step = stepper.seconds()
        start = time.perf_counter()
        e = space.step(direction, attack.rho_at(0.0), attack.radius)
        moved = torch._foreach_add(space.parameters, e)
        del e, moved
        synchronise(device)
        if repeat >= warmup:
            steps.append(step)
            shares.append((time.perf_counter() - start) / step)
    return {
        "share": machine.spread(shares),
        "step_seconds": machine.spread(steps),
        "weights": space.size,
        "settings": {**vars(settings), "repeats": repeats, "warmup": warmup},
        "load": os.getloadavg(),
        "environment": machine.environment(settings.device),
    }


def main() -> None:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar/resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = Settings(options.model, options.batch, device=options.device, dtype=options.dtype)
    result = run(settings, options.repeats)
    share = result["share"]
    print(
        f"perturbing {result['weights']:,} weights takes {share['median']:.2%} of a step "
        f"(p10 {share['p10']:.2%}, p90 {share['p90']:.2%}), load {result['load'][0]:.1f}"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("bar met" if share["median"] <= BAR else "bar MISSED")


if __name__ == "__main__":
    main()

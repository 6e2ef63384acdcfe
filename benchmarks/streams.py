"""Lookahead with its attack on a stream of its own, against one stream and against sequential.

    python benchmarks/streams.py --device cuda --json benchmarks/results/streams-gpu.json

One device that is starved: few images per step leave most of a GPU idle, so an attack beside
training should cost less than one before it. Steps of the three take turns and are divided round
by round. On a CPU there are no streams, and the first ratio is 1 but for noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import conadv
from conadv.lab.bench.stepper import Settings, Stepper
from conadv.schedules import Schedule
from conadv.trainer.run import environment as machine

KINDS: dict[str, Callable[[], Schedule]] = {
    "sequential": conadv.Sequential,
    "one stream": lambda: conadv.Lookahead(stream=False),
    "two streams": lambda: conadv.Lookahead(stream=True),
}


def measure(settings: Settings, repeats: int, warmup: int) -> dict[str, Any]:
    """One number of images per step: step times, and ratios of two streams to the others."""
    steppers = {name: Stepper(settings, make()) for name, make in KINDS.items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for repeat in range(warmup + repeats):
        for name, stepper in steppers.items():
            seconds = stepper.seconds()
            if repeat >= warmup:
                times[name].append(seconds)
    two = times["two streams"]
    return {
        "images": settings.batch,
        "step_seconds": {name: statistics.median(found) for name, found in times.items()},
        "two_over": {
            name: machine.spread([a / b for a, b in zip(two, times[name], strict=True)])
            for name in ("sequential", "one stream")
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="timm/resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for images in options.images:
        settings = Settings(
            options.model, images, options.image_size, 10, options.device, options.dtype
        )
        rows.append(measure(settings, options.repeats, options.warmup))
        ratios = {name: found["median"] for name, found in rows[-1]["two_over"].items()}
        print(
            f"{images:3} images: two streams take x{ratios['one stream']:.3f} of one stream, "
            f"x{ratios['sequential']:.3f} of sequential",
            flush=True,
        )
    if options.json:
        found = {
            "rows": rows,
            "settings": {**asdict(settings), "repeats": options.repeats},
            "environment": machine.environment(options.device),
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

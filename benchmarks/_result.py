"""What benchmarks on a shared machine measure beside time, and the file that they write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from conadv.trainer.probe.memory import synchronise
from conadv.trainer.run import environment as machine

Seconds = tuple[float, float]
"""Wall and processor time."""
CPU = torch.device("cpu")


def timed(run: Callable[[], object], device: torch.device = CPU) -> Seconds:
    """How long it takes."""
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    run()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - processor


def ratios(times: Sequence[Seconds], base: Sequence[Seconds]) -> dict[str, dict[str, float]]:
    """Median and spread of one over the other, turn by turn, and the range of all turns."""
    pairs = list(zip(times, base, strict=True))
    return {
        kind: machine.spread(parts) | {"least": min(parts), "most": max(parts)}
        for place, kind in enumerate(("wall", "processor"))
        if (parts := [one[place] / other[place] for one, other in pairs])
    }


def processor_seconds() -> float:
    """User and system time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def load() -> float:
    """Processes that wait for a core, the mean of the last minute."""
    return os.getloadavg()[0]


def write_result(path: Path | None, found: dict[str, Any], before: float) -> None:
    """Write what was found, with the machine and its load before and after; None writes nothing."""
    if path is not None:
        about = {"load": {"before": before, "after": load()}, "environment": machine.environment()}
        path.write_text(json.dumps(found | about, indent=1) + "\n")

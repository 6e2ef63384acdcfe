"""What benchmarks on a shared machine measure beside time, and the file that they write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from conadv.trainer.run import environment as machine


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

"""What every benchmark writes beside its figures: the machine, the versions, the spread."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conadv._command import as_typed


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile (linear interpolation)."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    p10, median, p90 = torch.quantile(tensor, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and the command, for a results file."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "command": as_typed(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": installed("timm"),
        "conadv": installed("conadv"),
        "system": f"{platform.system()} {platform.machine()}",
    }

"""What a run was made with: versions, hardware, threads, commit and command."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from conadv._command import as_typed

_PACKAGES = ("conadv", "torch", "torchvision", "timm", "numpy", "pydantic", "safetensors")


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Everything about the machine that a reader of the run may ask for.

    Args:
        device: The device of the run.
        processes: How many processes train together.

    Returns:
        Plain values, ready for JSON: ``started`` (UTC), ``command``, ``versions``, ``hardware``
        (processor, cores, threads, memory in bytes, device name) and ``commit`` (or None).
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": as_typed(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "platform": platform.platform(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "processes": processes,
            "threads": torch.get_num_threads(),
            "memory": _memory(),
            "device": str(device),
            "device_name": _device_name(device),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "commit": _commit(),
    }


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _commit() -> str | None:
    """The commit of conadv's own checkout, marked when files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-modified" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()

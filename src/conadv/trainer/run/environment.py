"""What a run was made with: versions, hardware, threads, commit and command."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

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
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor as the system reports it."""
    name = proc_line("cpuinfo", "model name")
    return name or platform.processor() or platform.machine()


def proc_line(file: str, *names: str) -> str | None:
    """What Linux's /proc/`file` says of the first of these names; None where it does not."""
    try:
        lines = Path("/proc", file).read_text(errors="replace").splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(names))
    return next(values, None)


def proc_bytes(file: str, name: str) -> int | None:
    """A figure of memory there, which Linux gives in kB: ``("self/status", "VmHWM")``."""
    line = proc_line(file, name + ":")
    return None if line is None else int(line.split()[0]) * 1024


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


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile (linear interpolation)."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    p10, median, p90 = torch.quantile(tensor, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and the command in short, for a results file."""
    return {
        "command": as_typed(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": _device_name(torch.device(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "conadv": _version("conadv"),
        "system": f"{platform.system()} {platform.machine()}",
    }


_INSTEAD: ContextVar[str | None] = ContextVar("command", default=None)


def as_typed() -> str:
    """Program and arguments, without the folders of the machine that ran it."""
    return _INSTEAD.get() or shlex.join([*_program(), *sys.argv[1:]])


@contextmanager
def standing_for(command: str) -> Iterator[None]:
    """What is made inside is remade by another command than this process's, as in a study."""
    token = _INSTEAD.set(command)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def _program() -> list[str]:
    path = Path(sys.argv[0])
    if path.suffix != ".py" or path.stem == "__main__":
        return ["conadv"]
    relative = os.path.relpath(path)
    return ["python", path.name if relative.startswith("..") else Path(relative).as_posix()]

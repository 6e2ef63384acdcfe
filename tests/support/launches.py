"""Runs on several gloo ranks: within this test, or as the real command."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from conadv.errors import ConadvError
from conadv.trainer.distributed.world import leave
from support.runs import TINY, StopAfter, quietly, tiny
from support.waiting import wait_for_all

PARALLEL = (
    "data.synthetic.train_images=100",  # 85 to train on: a short last step of 3 micro-batches
    "data.order_tail=keep",
    "batch.global_batch=32",
    "optimizer.lr=0.02",
    "train.steps=20",
    "evaluation.every_epochs=1.7",
    "hardware.precision=fp32",
    "hardware.timeout=60",
)
"""Four micro-batches per step, which one, two or four processes can share."""

Case = tuple[str, tuple[str, ...], dict[str, Any]]
"""Name of the run folder, overrides, and options of `train`; ``stop_after`` is a step."""


def recipe(*overrides: str) -> Any:
    """The tiny recipe for several ranks."""
    return tiny(*PARALLEL, *overrides)


def run_cases(folder: Path, cases: Sequence[Case]) -> dict[str, str]:
    """Train one case after the other; what went wrong, by name."""
    problems: dict[str, str] = {}
    for name, overrides, options in cases:
        options = dict(options)
        if (after := options.pop("stop_after", None)) is not None:
            options["stop"] = StopAfter(after)
        try:
            quietly(recipe(*overrides), folder / name, **options)
        except ConadvError as error:
            problems[name] = f"{type(error).__name__}: {error}"
    return problems


def _rank_main(rank: int, size: int, folder: str, cases: Sequence[Case]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    torch.save(run_cases(Path(folder), cases), Path(folder) / f"problems-{rank}.pt")
    leave()
    if not any("hardware.parallel=fsdp" in overrides for _, overrides, _ in cases):
        assert not gloo_threads()  # caches of DTensor hold the group


def gloo_threads() -> list[str]:
    """Threads of gloo that this process still has, where they can be seen."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def on_ranks(size: int, folder: Path, cases: Sequence[Case]) -> list[dict[str, str]]:
    """Train the cases on so many ranks; each rank's problems."""
    folder.mkdir(parents=True, exist_ok=True)
    if size == 1:
        return [run_cases(folder, cases)]
    (folder / "meeting").unlink(missing_ok=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    arguments = (size, str(folder), list(cases))
    context = torch.multiprocessing.spawn(_rank_main, arguments, size, join=False)
    wait_for_all(context)
    return [torch.load(folder / f"problems-{rank}.pt", weights_only=True) for rank in range(size)]


def start(
    out: Path,
    *overrides: str,
    ranks: int = 1,
    more: Sequence[str] = (),
    path: Path | None = None,
) -> subprocess.Popen[str]:
    """``conadv train`` on so many processes, started; ``path`` is looked in for modules first."""
    train = ["-m", "conadv", "train", "smoke", *TINY, *PARALLEL, *overrides]
    devices = ["--devices", str(ranks)] if ranks > 1 else []
    found = [p for p in (str(path or ""), os.environ.get("PYTHONPATH", "")) if p]
    limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, *train, "--out", str(out), *devices, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **limits, "PYTHONPATH": os.pathsep.join(found)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed, on both streams."""
    try:
        return process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its processes
        printed, errors = process.communicate()
        raise AssertionError(f"it hangs:\n{printed}\n{errors}") from None


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)


def worker(out: Path, rank: int) -> int:
    """Process number of a rank of the run in this folder."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
            if str(out).encode() in command and f"RANK={rank}".encode() in environment:
                return int(folder.name)
    raise AssertionError(f"rank {rank} is not there")


finds_workers = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes in /proc"
)

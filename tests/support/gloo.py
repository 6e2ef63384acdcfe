"""Cases that run on several gloo ranks, all in one set of processes: starting one takes seconds."""

import importlib
import multiprocessing
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

from conadv.trainer.distributed.world import leave
from support.waiting import wait_for_all

HEAVY = ("torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "conadv.optim")
"""What takes seconds to import and is imported once for all ranks."""

Name = tuple[str, ...]
Results = list[dict[Name, Any]]
"""What each case returned, by name, for each rank; {"error": traceback} where it raised."""


def _rank_main(rank: int, world: int, folder: str, module: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    results: dict[Name, Any] = {}
    for name, case in importlib.import_module(module).cases(world).items():
        torch.manual_seed(0)
        try:
            results[name] = case(rank)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    leave()


def _run(module: str, world: int, folder: Path) -> Results:
    files = [folder / f"rank{rank}.pt" for rank in range(world)]
    if not all(file.exists() for file in files):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # A process of its own imports torch and forks the ranks: this one has had backward passes,
        # whose threads a fork would lose.
        multiprocessing.set_forkserver_preload(list(HEAVY))
        context = torch.multiprocessing.start_processes(
            _rank_main, (world, str(folder), module), world, join=False, start_method="forkserver"
        )
        wait_for_all(context)
    return [torch.load(file, weights_only=True) for file in files]


def run_cases(module: str, world: int, factory: pytest.TempPathFactory) -> Results:
    """Run what ``module.cases(world)`` names: functions of the rank, the same on every rank.

    Where pytest has several workers, one of them starts the ranks.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return _run(module, world, factory.mktemp("ranks"))
    folder = factory.getbasetemp().parent / f"{module}-{world}-{run}"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        return _run(module, world, folder)


def of_case(results: Results, *name: str) -> list[Any]:
    """What a case returned on each rank; its traceback is raised."""
    for found in results:
        if isinstance(found[name], dict) and "error" in found[name]:
            raise AssertionError(found[name]["error"])
    return [found[name] for found in results]

"""Leaving a process group ends its threads: a run that went well is not aborted at its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.ports import free_port

LATE = """
import sys
import torch
import torch.distributed as dist
from conadv.trainer.distributed.world import join
from support.launches import gloo_threads

def train(how):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    model.me = [model]
    model(torch.ones(2, 3)).sum().backward()
    for _ in range(1500):  # under way when the interpreter ends, if nothing waits for them
        dist.all_reduce(torch.empty(100000), async_op=True)
    if how == "error":
        raise OSError("no disk")

def run(how):
    with join("cpu", 60):
        train(how)

try:
    run(sys.argv[1])
except OSError:  # until here the error holds the model, and that its group
    sys.exit(3)
assert not gloo_threads()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("well", 0), ("error", 3)])
def test_collectives_under_way_do_not_abort_the_process(how: str, code: int) -> None:
    """The process's own exit code, and not that of an abort, also after an error."""
    tests = str(Path(__file__).parents[2])
    found = os.pathsep.join(p for p in (tests, os.environ.get("PYTHONPATH", "")) if p)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    limits = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": found}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", LATE, how],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, **limits, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == code, errors
    finally:
        for process in ranks:
            process.kill()

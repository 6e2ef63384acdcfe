"""Agents of torchrun, as on several machines: deaths, and machines that come and go."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conadv.trainer.run.lines import read_lines
from support.launches import PARALLEL, finds_workers, finish, worker
from support.ports import free_port
from support.runs import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), finds_workers]

TRAIN = (*TINY, *PARALLEL, "checkpoint.every_steps=5", "train.steps=100000")


class Agents:
    """Machines of a launch, one process each, of a run without end."""

    def __init__(self, out: Path) -> None:
        self.out, self.nodes, self.port = out, "2", free_port()
        self.running: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        """One more; the first keeps the rendezvous."""
        options = ["--nnodes", self.nodes, "--nproc-per-node", "1", "--max-restarts", "3"]
        options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{self.port}"]
        options += ["--rdzv-id", "job", "--local-addr", "localhost", "--monitor-interval", "0.1"]
        options += ["--rdzv-conf", "last_call_timeout=2,keep_alive_interval=1"]
        train = ["-m", "conadv", "train", "smoke", *TRAIN, "--out", str(self.out), "--resume"]
        limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        # Otherwise an agent that comes later waits for an address that the first one never repeats.
        limits["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, *train],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits},
        )
        self.running.append(process)
        return process

    def sizes(self) -> list[int]:
        """On how many processes the run was each time."""
        try:
            environment = json.loads((self.out / "environment.json").read_text())
        except FileNotFoundError:
            return []
        every = [environment, *environment.get("resumed", [])]
        return [one["hardware"]["processes"] for one in every]

    def last_step(self) -> int:
        """How far it is."""
        return max((line["step"] for line in read_lines(self.out / "timing.jsonl")), default=0)

    def wait(self, starts: int) -> int:
        """Until it was started so often and has got on since; the step it is at."""
        deadline, begun = time.monotonic() + 200, None
        while begun is None or self.last_step() < begun + 7:
            assert time.monotonic() < deadline, (self.sizes(), self.last_step(), self.end())
            time.sleep(0.1)
            if begun is None and len(self.sizes()) >= starts:
                begun = self.last_step()
        return self.last_step()

    def end(self) -> list[str]:
        """Ask all of them to stop; what they said."""
        for process in self.running:
            if process.poll() is None:
                process.terminate()
        return [finish(process)[1] for process in self.running]

    def check(self) -> None:
        """That the run was stopped in order, and that no step is missing or there twice."""
        said = self.end()
        result = json.loads((self.out / "result.json").read_text())
        assert result["status"] == "interrupted", said
        steps = [line["step"] for line in read_lines(self.out / "timing.jsonl")]
        assert steps == list(range(1, result["steps"] + 1))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(tmp_path / "run")
    yield agents
    agents.end()


def test_a_worker_is_killed_twice(launch: Agents) -> None:
    """Its agent and the other one may count another number of restarts afterwards."""
    launch.start()
    launch.start()
    for rank in (1, 0):
        launch.wait(2 - rank)
        os.kill(worker(launch.out, rank), signal.SIGKILL)
    launch.wait(3)
    launch.check()
    assert launch.sizes() == [2, 2, 2]


def test_an_agent_is_killed_and_replaced(launch: Agents) -> None:
    """What it leaves behind, an orphan, has the run write a checkpoint and stops."""
    launch.start()
    time.sleep(2)
    second = launch.start()
    launch.wait(1)
    second.kill()
    launch.start()
    launch.wait(2)
    launch.check()
    assert set(launch.sizes()) == {2}


def test_machines_leave_and_come(launch: Agents) -> None:
    launch.nodes = "1:2"
    launch.start()
    time.sleep(2)
    second = launch.start()
    while 2 not in launch.sizes():
        launch.wait(len(launch.sizes()) + 1)  # the first may have begun alone
    second.terminate()
    while launch.sizes()[-1] == 2:
        launch.wait(len(launch.sizes()) + 1)
    launch.start()
    while launch.sizes()[-1] == 1:
        launch.wait(len(launch.sizes()) + 1)
    launch.check()

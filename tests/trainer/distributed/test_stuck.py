"""A process that dies, hangs or fails stops all of them, with one message that names it."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from support.launches import finds_workers, finish, start, wait_for_step, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENDLESS = ("train.steps=5000", "hardware.timeout=6")

AT_STEP_3 = """
import os
if os.environ.get("RANK") == "{rank}":
    import importlib.abc, importlib.util, sys

    class Late(importlib.abc.MetaPathFinder):
        '''Changes the trainer once it is imported, and not before.'''
        def find_spec(self, name, path, target=None):
            if name != "conadv.trainer.trainer":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                begin = module.Trainer._begin_round
                def at_step_3(self, slot):
                    if self.step == 3:
                        {action}
                    return begin(self, slot)
                module.Trainer._begin_round = at_step_3
            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Late())
"""


def start_changed(tmp_path: Path, rank: int, action: str, *overrides: str):  # type: ignore[no-untyped-def]
    """Two processes, of which one does something else at step 3."""
    (tmp_path / "sitecustomize.py").write_text(AT_STEP_3.format(rank=rank, action=action))
    return start(tmp_path / "run", *ENDLESS, *overrides, ranks=2, path=tmp_path)


def one_message(errors: str) -> str:
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, errors
    assert "--resume" in told[0]
    return told[0]


@finds_workers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed(rank: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, *ENDLESS, ranks=2)
    wait_for_step(process, out, 3)
    time.sleep(3)  # a sign of life is written every second
    os.kill(worker(out, rank), signal.SIGKILL)
    _, errors = finish(process)
    assert process.returncode not in (0, None)
    assert f"rank {rank} (process" in one_message(errors)
    assert "is gone: no sign of life" in errors
    assert re.search(r"; last seen (taking|evaluating after) step \d", errors)
    assert "Traceback" not in errors


@finds_workers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped(rank: int, tmp_path: Path) -> None:
    """As good as dead, but its connections stand: nobody else would notice."""
    out = tmp_path / "run"
    process = start(out, *ENDLESS, ranks=2)
    wait_for_step(process, out, 3)
    stopped = worker(out, rank)
    os.kill(stopped, signal.SIGSTOP)
    assert process.stderr is not None
    lines = []
    while not (lines and lines[-1].startswith("error: ")):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    # The launcher would kill it in half a minute.
    os.kill(stopped, signal.SIGKILL)
    _, errors = finish(process)
    assert process.returncode not in (0, None)
    assert f"rank {rank} (process {stopped} on " in one_message("".join(lines) + errors)
    assert "is gone: no sign of life for" in lines[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs(rank: int, tmp_path: Path) -> None:
    process = start_changed(tmp_path, rank, "while True: pass")
    _, errors = finish(process)
    assert process.returncode not in (0, None)
    told = one_message(errors)
    assert f"rank {rank} (process" in told
    assert "is stuck: the others have waited for it for 6 s (hardware.timeout)" in told
    assert "last seen taking step 4 at trainer/trainer.py:" in told
    assert "Traceback" not in errors


def test_a_process_that_fails(tmp_path: Path) -> None:
    """A bug or a lack of memory: said once, by the process that knows."""
    process = start_changed(tmp_path, 1, "raise KeyError('of rank 1')", "hardware.timeout=60")
    _, errors = finish(process)
    assert process.returncode not in (0, None)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert told == ["error: KeyError: 'of rank 1' (while taking step 4)"], errors
    assert "CONADV_TRACEBACK=1" in errors and "Traceback" not in errors


def test_a_process_whose_loss_is_not_a_number(tmp_path: Path) -> None:
    action = "self.model.train(); next(self.model.parameters()).data.fill_(float('nan'))"
    process = start_changed(tmp_path, 1, action, "hardware.timeout=60")
    _, errors = finish(process)
    assert process.returncode == 2
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "step 4: the loss is nan (rank 1)" in told[0], errors
    assert "Traceback" not in errors

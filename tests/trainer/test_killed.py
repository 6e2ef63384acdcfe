"""The command itself, killed for real, and continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.runs import TINY, assert_same_state, final_state, quietly, tiny

STEPS = 60
OVERRIDES = (f"train.steps={STEPS}", "evaluation.every_epochs=5", "checkpoint.every_steps=7")


def _start(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "conadv", "train", "smoke", *TINY, *OVERRIDES]
    return subprocess.Popen(
        [*command, "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The tests and the command must add in the same order.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


def _wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed") / "unbroken"
    quietly(tiny(*OVERRIDES), out)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_resumed_equals_unbroken(
    number: signal.Signals, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = _start(out)
    _wait_for_step(process, out, 20)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode not in (0, -number)
        assert f"stopped by {number.name}" in errors
        assert f"conadv train {out} --resume" in errors
        assert "Traceback" not in errors
    assert not (out / "pictures.npz").exists()  # it was stopped on the way

    process = _start(out, "--resume")
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (out / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(out), final_state(unbroken))
    assert "test accuracy" in printed

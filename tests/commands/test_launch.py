"""``conadv train --devices N``: the real command, its signals, and one voice."""

import json
import os
import signal
from pathlib import Path

import pytest

from conadv.commands._launch import without
from support.launches import finds_workers, finish, start, wait_for_step, worker
from support.runs import assert_same_state, final_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_two_processes_train_and_one_speaks(tmp_path: Path) -> None:
    process = start(tmp_path / "run", ranks=2)
    printed, errors = finish(process)
    assert process.returncode == 0, errors
    assert printed.count("test accuracy") == 1
    assert errors.count("step 2: validation loss") <= 1 and "Traceback" not in errors
    assert "Warning" not in errors  # nor of a function that the newest torch calls old
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["hardware"]["processes"] == 2
    assert final_state(tmp_path / "run")["ranks"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, "train.steps=2000", ranks=2)
    wait_for_step(process, out, 3)
    process.send_signal(number)
    _, errors = finish(process)
    assert process.returncode not in (0, None)
    assert errors.count("a checkpoint is written") == 1, errors
    assert "--resume" in errors and "Traceback" not in errors
    step = final_state(out)["trainer"]["step"]
    assert json.loads((out / "result.json").read_text())["steps"] == step >= 3


@finds_workers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_brings_the_run_back(rank: int, tmp_path: Path) -> None:
    """Without anybody's help, from the last checkpoint, and to the same end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    overrides = ("train.steps=60", "checkpoint.every_steps=5", "method.schedule=lookahead")
    process = start(whole, *overrides, ranks=2)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    process = start(broken, *overrides, ranks=2, more=["--max-restarts", "2"])
    wait_for_step(process, broken, 12)
    os.kill(worker(broken, rank), signal.SIGKILL)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(broken)["trainer"], final_state(whole)["trainer"])
    resumed = json.loads((broken / "environment.json").read_text())["resumed"]
    assert len(resumed) == 1


def test_a_number_of_devices_that_cannot(tmp_path: Path) -> None:
    process = start(tmp_path / "run", ranks=3)
    _, errors = finish(process)
    assert process.returncode == 2
    assert "Possible numbers of processes are 1, 2, 4" in errors
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").touch()
    process = start(tmp_path / "run", ranks=2)
    _, errors = finish(process)
    assert process.returncode == 2
    assert errors.count("is not an empty folder") == 1 and "Traceback" not in errors


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["train", "x", "--devices", "4", "--resume"], ["train", "x", "--resume"]),
        (["train", "--devices=4", "x"], ["train", "x"]),
        (["train", "x"], ["train", "x"]),
    ],
)
def test_the_option_is_taken_out(given: list[str], left: list[str]) -> None:
    assert without(given, "--devices") == left

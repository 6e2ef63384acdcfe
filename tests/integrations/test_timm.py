"""A script that trains with timm's task equals the plain loop, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from support import timm_loops as loops
from support.gloo import of_case, run_cases
from support.trainers import SETTINGS, assert_same, data

SCRIPT = os.environ.get("CONADV_TIMM_SCRIPT")


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_equals_the_plain_loop(setting: str, tmp_path: Path) -> None:
    options = SETTINGS[setting]
    by_hand = loops.plain(data(options.get("accumulation", 1)), **options)
    assert_same(loops.train(tmp_path, **options), by_hand)


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    assert_same(loops.resume(tmp_path), loops.plain(data() + data()))


def test_a_checkpoint_without_copies_is_told(tmp_path: Path) -> None:
    loops.train(tmp_path)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    del saved["task_state"]
    torch.save(saved, tmp_path / "without.pth.tar")
    with pytest.warns(UserWarning, match="the first step has none"):
        loops.run(tmp_path, "--epochs=2", f"--resume={tmp_path / 'without.pth.tar'}")


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lookahead has to see the next batch"):
        loops.train(tmp_path, schedule="lookahead")
    script = tmp_path / "distil.py"
    script.write_text("from timm.task import LogitDistillationTask\nLogitDistillationTask()\n")
    with pytest.raises(SystemExit, match="distillation and multi-label"):
        loops.main([str(script)])


@pytest.mark.slow
def test_two_ranks_equal_the_plain_loop_in_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = run_cases("support.timm_loops", loops.WORLD, tmp_path_factory)
    for (case,) in results[0]:
        first, second = of_case(results, case)
        # The checkpoint holds rank 0's running statistics, and of every rank what is pending.
        assert_same(first["trainer"], first["plain"])
        torch.testing.assert_close(second["trainer"]["pending"], second["plain"]["pending"])
        with pytest.raises(AssertionError):  # each rank has copies of its own
            torch.testing.assert_close(first["trainer"]["pending"], second["trainer"]["pending"])


@pytest.mark.slow
@pytest.mark.skipif(SCRIPT is None, reason="CONADV_TIMM_SCRIPT names no train.py of timm")
def test_timms_own_script_trains_and_resumes(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "validation"):
        for name in ("a", "b"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    command = [sys.executable, "-m", "conadv.integrations.timm", "--epsilon", "4", SCRIPT]
    command += [str(tmp_path), "--model", "test_resnet", "--num-classes", "2", "--device", "cpu"]
    command += ["--input-size", "3", "32", "32", "--batch-size", "4", "--workers", "0"]
    command += ["--opt", "sgd", "--output", str(tmp_path), "--experiment", "run", "--epochs", "1"]
    subprocess.run(command, check=True)
    last = tmp_path / "run" / "last.pth.tar"
    [first] = torch.load(last, weights_only=False)["task_state"]["conadv"]["ranks"]
    assert first["rounds"] == 4 and first["state"]["pending"]
    command[command.index("run")] = "again"
    command[-1] = "2"
    done = subprocess.run([*command, "--resume", str(last)], check=True, stderr=subprocess.PIPE)
    assert b"no adversarial copies" not in done.stderr
    after = torch.load(tmp_path / "again" / "last.pth.tar", weights_only=False)
    assert after["task_state"]["conadv"]["ranks"][0]["rounds"] > 4

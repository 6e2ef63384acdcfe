"""The end-to-end benchmark on a small recipe: what it reports, and that it runs once."""

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import imagenet_end_to_end
import pytest

RECIPE = """
name: small
data: {dataset: files, flip: true, validation: 0, files: {workers: 0}}
model: {name: cifar/resnet8}
batch: {global_batch: 32, micro_batch: 16, norm_group: 16}
method: {schedule: recycled}
optimizer: {name: lars, lr: 8}
lr_schedule: {warmup_epochs: 5}
train: {epochs: 90}
"""


def test_from_files_to_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "small.yaml", tmp_path / "found.json"
    recipe.write_text(RECIPE)
    options = ["--recipes", str(recipe), "--size", "8", "--steps", "3", "--images", "1000"]
    options += ["--folder", str(tmp_path / "runs"), "--json", str(out)]
    imagenet_end_to_end.main(options)
    assert "small at 8 px: 3 steps of 32" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["recipe"], row["steps"], row["global_batch"]) == ("small", 3, 32)
    assert row["images_seen"] == 96
    assert len(row["losses"]) == len(row["learning_rates"]) == 3
    assert row["step_seconds_median"] == pytest.approx(statistics.median(row["step_seconds"]))
    # The first steps of the whole recipe's rise over five epochs of ImageNet.
    rise = 5 * imagenet_end_to_end.TRAIN_IMAGES / 32
    assert row["learning_rates"][0] == pytest.approx(8 / rise, rel=0.01)
    assert row["peak_bytes"] > 100 * 2**20

    run = tmp_path / "runs" / "small-8"
    before = (run / "metrics.jsonl").read_bytes()
    imagenet_end_to_end.main(options)  # finished: only read
    assert (run / "metrics.jsonl").read_bytes() == before


def test_interrupted_it_goes_on(tmp_path: Path) -> None:
    recipe, out = tmp_path / "small.yaml", tmp_path / "found.json"
    recipe.write_text(RECIPE)
    steps = 120
    options = ["--recipes", str(recipe), "--size", "8", "--steps", str(steps), "--images", "1000"]
    options += ["--folder", str(tmp_path / "runs"), "--json", str(out)]
    run = tmp_path / "runs" / "small-8"
    timing = run / "timing.jsonl"
    program = subprocess.Popen([sys.executable, imagenet_end_to_end.__file__, *options])
    end = time.monotonic() + 120
    while not (timing.exists() and timing.read_text().count("\n") >= 2):
        assert program.poll() is None and time.monotonic() < end, "no step was taken"
        time.sleep(0.02)
    program.send_signal(signal.SIGINT)
    assert program.wait(60) != 0 and not out.exists()
    assert not imagenet_end_to_end.finished(run)
    imagenet_end_to_end.main(options)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["steps"] == len(row["losses"]) == steps
    taken = [json.loads(line)["step"] for line in timing.read_text().splitlines()]
    assert taken == list(range(1, steps + 1))


def test_a_micro_batch_that_does_not_divide(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    options = ["--recipes", str(recipe), "--size", "8", "--images", "1000", "--micro-batch", "5"]
    with pytest.raises(SystemExit, match="--micro-batch 5 does not divide 32"):
        imagenet_end_to_end.main([*options, "--folder", str(tmp_path / "runs")])

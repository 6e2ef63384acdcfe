"""The end-to-end benchmark on a small recipe: what it reports, and that it runs once."""

import json
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
    # The first steps of the whole recipe's rise over five epochs of ImageNet.
    rise = 5 * imagenet_end_to_end.TRAIN_IMAGES / 32
    assert row["learning_rates"][0] == pytest.approx(8 / rise, rel=0.01)
    assert row["peak_bytes"] > 100 * 2**20

    run = tmp_path / "runs" / "small-8"
    before = (run / "metrics.jsonl").read_bytes()
    imagenet_end_to_end.main(options)  # finished: only read
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_micro_batch_that_does_not_divide(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    options = ["--recipes", str(recipe), "--size", "8", "--images", "1000", "--micro-batch", "5"]
    with pytest.raises(SystemExit, match="--micro-batch 5 does not divide 32"):
        imagenet_end_to_end.main([*options, "--folder", str(tmp_path / "runs")])

"""Counts by class: closed forms, and figures of a run that agree with one another."""

import json
from pathlib import Path

import pytest
import torch

from conadv.cli import main
from conadv.trainer.evaluation.classes import ClassCounts
from support.runs import quietly, tiny


def test_counts_of_a_few_images() -> None:
    counts = ClassCounts(["a", "b", "c", "d", "e", "f"])
    logits = torch.zeros(4, 8)  # two outputs more than the data has classes
    for row, order in enumerate([(0, 1), (1, 0), (7, 1), (2, 1)]):
        logits[row, order[0]], logits[row, order[1]] = 2.0, 1.0
    logits[3, 3:7] = torch.tensor([1.5, 1.5, 1.5, 1.5])
    for part in (slice(0, 1), slice(1, 4)):
        counts(logits[part], torch.tensor([0, 0, 1, 1])[part])
    found = counts.as_dict()
    assert found["class_accuracy"] == {"a": 0.5, "b": 0, "c": None, "d": None, "e": None, "f": None}
    assert found["confusion"][0] == [1, 1, 0, 0, 0, 0]
    assert found["confusion"][1] == [0, 0, 1, 0, 0, 0]
    assert found["top5_accuracy"] == 0.75  # the last image's class comes sixth
    assert counts.images.tolist() == [2, 2, 0, 0, 0, 0]


def test_a_run_is_told_about_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ("data.synthetic.classes=7", "data.synthetic.test_images=28")
    quietly(tiny(*classes), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--steps", "0", "--classes"]) == 0
    shown = capsys.readouterr().out
    assert "top 5 " in shown and "mostly taken for" in shown and "class 6" in shown
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    matrix = torch.tensor(found["confusion"])
    assert matrix.sum() == 28 and matrix.sum(dim=1).tolist() == [4] * 7
    assert int(matrix.trace()) / 28 == found["test_accuracy"] <= found["top5_accuracy"]
    by_class = list(found["class_accuracy"].values())
    assert by_class == (matrix.diagonal() / 4).tolist()

"""benchmarks/weights.py at a tiny size, its arithmetic and its goals."""

import json
from pathlib import Path
from typing import Any

import pytest

import weights as benchmark


def test_it_measures_every_schedule_and_the_perturbation(tmp_path: Path, capsys) -> None:
    out = tmp_path / "found.json"
    small = ["--model", "cifar/resnet8", "--batch", "4", "--image-size", "8", "--repeats", "2"]
    missed = benchmark.main([*small, "--json", str(out)])
    found = json.loads(out.read_text())
    assert missed == bool(found["missed"])
    assert [(row["schedule"], row["operations"]) for row in found["rows"]] == [
        ("none", 1.0),
        ("sequential", 2.0),
        ("recycled", 2.0),
        ("recycled-budget", 1.0),
    ]
    for part in (*found["rows"], found["perturbation"]):
        for kind in ("wall", "processor"):
            assert 0 < part[kind]["least"] <= part[kind]["median"] <= part[kind]["most"]
    assert found["rows"][0]["processor"]["median"] == 1.0
    assert found["weights"] > 50_000
    assert ("goals MISSED" in capsys.readouterr().out) == bool(missed)


def test_ratios_are_of_one_turn() -> None:
    found = benchmark.ratios([(2.0, 1.0), (8.0, 3.0)], [(1.0, 1.0), (4.0, 1.5)])
    assert found["wall"]["median"] == 2.0
    assert (found["processor"]["least"], found["processor"]["most"]) == (1.0, 2.0)


def result(sequential: float, share: float) -> dict[str, Any]:
    row = {"schedule": "sequential", "operations": 2.0, "processor": {"median": sequential}}
    return {"rows": [row], "perturbation": {"processor": {"median": share}}}


@pytest.mark.parametrize(
    ("sequential", "share", "said"),
    [
        (2.1, 0.02, []),
        (2.2, 0.02, ["takes 2.20 of"]),
        (1.8, 0.02, ["its operations are 2.00"]),
        (2.0, 0.04, ["4.0% of a step"]),
    ],
)
def test_goals(sequential: float, share: float, said: list[str]) -> None:
    missed = benchmark.judge(result(sequential, share), "processor")
    assert len(missed) == len(said)
    assert all(part in text for part, text in zip(said, missed, strict=True))

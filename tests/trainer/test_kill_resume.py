"""A few of the kills that benchmarks/kill_resume.py makes fifty of."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kill_resume


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_on_two_ranks_and_nothing_is_lost(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    arguments = ["--kills", "4", "--ranks", "2", "--steps", "30", "--schedules"]
    schedules = ["recycled", "weights-recycled"]
    assert kill_resume.main([*arguments, *schedules, "--json", str(found)]) == 0
    rows = json.loads(found.read_text())["rows"]
    assert [row["schedule"] for row in rows] == schedules
    assert all(row["kills"] == 2 and row["difference"] is None for row in rows)


def test_a_difference_is_found(tmp_path: Path) -> None:
    import torch

    for name, weight in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        part = {"weight": torch.tensor(weight)}
        state = {"trainer": {"model": part, "ema": part}}
        torch.save(state, tmp_path / name / "checkpoints/last.pt")
    assert kill_resume.difference(tmp_path / "a", tmp_path / "b") == "model weight"
    assert kill_resume.difference(tmp_path / "a", tmp_path / "c") is None
    (tmp_path / "c/metrics.jsonl").write_text("{} ")
    assert kill_resume.difference(tmp_path / "a", tmp_path / "c") == "metrics.jsonl"

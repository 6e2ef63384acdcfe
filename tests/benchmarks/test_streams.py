"""The benchmark of two streams runs, and writes what it says; what it finds is for GPUs."""

import json
from pathlib import Path

import pytest
import streams


def test_it_measures_on_any_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "streams.json"
    small = ["--model", "cifar/resnet8", "--image-size", "8", "--images", "2", "4"]
    few = ["--repeats", "2", "--warmup", "1", "--device", "cpu"]
    streams.main([*small, *few, "--json", str(path)])
    assert capsys.readouterr().out.count("of sequential") == 2
    found = json.loads(path.read_text())
    assert [row["images"] for row in found["rows"]] == [2, 4]
    for row in found["rows"]:
        assert set(row["step_seconds"]) == set(streams.KINDS)
        assert all(ratio["median"] > 0 for ratio in row["two_over"].values())

"""The benchmark of a study's orchestration, with a command that is made up."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import study_overhead


def fake_study(runs: list[float], around: float, before: float, clock: list[float]) -> Any:
    """Stands for the command: runs of so many seconds, so many around each of them."""

    def run(command: list[str], **_: Any) -> None:
        out = Path(command[command.index("--out") + 1])
        clock[0] += before
        for number, seconds in enumerate(runs):
            task = out / "tasks/cell" / f"trial-{number:03d}"
            task.mkdir(parents=True)
            (task / "claim-0.json").write_text(json.dumps({"time": clock[0]}))
            (task / "outcome.json").write_text(
                json.dumps({"seconds": seconds, "status": "finished"})
            )
            clock[0] += seconds + around

    return run


def test_where_the_time_went(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [1000.0]
    run = fake_study([10.0, 30.0, 20.0, 40.0], around=0.1, before=5.0, clock=clock)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(study_overhead.time, "perf_counter", lambda: clock[0])
    found = study_overhead.measure(1, 1, 1)
    assert found["run_seconds"] == 100 and found["wall_seconds"] == pytest.approx(105.4)
    assert found["overhead"] == pytest.approx(0.054)
    assert found["seconds_around_a_run"] == pytest.approx(0.1)
    assert found["seconds_once"] == pytest.approx(5.0)
    path = tmp_path / "found.json"
    assert study_overhead.main(["--json", str(path)]) == 1  # over the bar
    assert json.loads(path.read_text())["bar"] == 0.02

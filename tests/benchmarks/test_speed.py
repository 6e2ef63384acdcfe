"""The benchmarks of a step's parts, and of two trainings on the same cores."""

import json
from pathlib import Path
from typing import Any

import pytest
import side_by_side
import step_parts
import train_vs_timm


@pytest.mark.slow
def test_the_parts_of_a_step_make_up_the_step(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    sizes = ["--batch", "8", "--rounds", "2", "--steps", "2", "--precision", "fp32"]
    step_parts.main(["--models", "cifar/resnet8", *sizes, "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    parts = row["processor_seconds"]
    assert all(parts[name] > 0 for name in ("step", "images", "update", "network", "convolutions"))
    assert parts["convolutions"] < parts["network"] < parts["step"]
    together = sum(row["share_of_step"][k]["median"] for k in ("images", "update", "network"))
    assert together + row["share_of_step"]["host"]["median"] == pytest.approx(1, abs=1e-6)


def test_how_much_each_of_two_loses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = dict(zip(side_by_side.WAYS, [(1.0, 5.0), (1.5, 30.0), (1.6, 1.8)], strict=True))

    def together(count: int, way: str, *_: Any) -> dict[str, float]:
        step = seconds[way][count - 1]
        return {"step": step, "processor": 3.0 * step}

    monkeypatch.setattr(side_by_side, "train_together", together)
    path = tmp_path / "found.json"
    side_by_side.main(["--rounds", "3", "--json", str(path)])
    default, _, single = json.loads(path.read_text())["rows"]
    assert default["slower_alone"]["median"] == 1 and default["slower_beside"]["median"] == 5
    assert single["slower_alone"]["median"] == pytest.approx(1.6)
    assert single["slower_beside"]["median"] == pytest.approx(1.8)
    assert single["slower_beside"]["median"] < single["goal"]
    assert single["processor_time"]["median"] == pytest.approx(1.8)


def test_steps_at_both_ends_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "timing.jsonl"
    seconds = [9.0] * side_by_side.SKIP + [1.0, 2.0, 3.0] + [9.0] * side_by_side.SKIP
    path.write_text("\n".join(json.dumps({"step": 1, "seconds": s}) for s in seconds))
    assert side_by_side.step_seconds(path) == 2.0


def test_what_images_cost_is_what_a_longer_run_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def run(images: int) -> float:
        clock[0] += 20.0 + 0.01 * images  # 20 seconds of start-up
        return 50.0

    monkeypatch.setattr(train_vs_timm, "processor_seconds", lambda: clock[0])
    assert train_vs_timm.costed(run, 400) == (50.0, pytest.approx(0.01))

"""Curves: where points lie on each axis, and how many there are."""

import json
from pathlib import Path
from typing import Any

import pytest

from conadv.lab.report import find_runs
from conadv.lab.report.charts.curves import POINTS, Chart, cost_bars, curves, shared_axes
from conadv.lab.report.charts.palette import colours
from conadv.lab.report.study.cells import cells
from lab.report.conftest import MakeRun


def draw(*folders: Path) -> list[Chart]:
    runs = find_runs(folders)
    return curves(runs, colours((cell.key, cell.batch) for cell in cells(runs)))


def chart(charts: list[Chart], slug: str) -> Any:
    return next(chart for chart in charts if chart.slug == slug).figure["data"]


def test_every_axis_of_every_curve(make_run: MakeRun) -> None:
    charts = draw(make_run("r", schedule="recycled", batch=100))
    slugs = [chart.slug for chart in charts]
    assert sorted(slugs) == ["train-accuracy", "train-loss", "val-accuracy", "val-loss"]
    assert [axis.slug for axis in shared_axes(charts)] == ["epoch", "compute", "seconds"]
    (trace,) = chart(charts, "val-accuracy")
    assert trace["y"] == [50.0] * 4
    assert trace["meta"]["x"]["epoch"] == trace["x"] == [0.5, 1.0, 1.5, 2.0]
    # Evaluations know their step alone: the rest comes from the training steps around them.
    assert trace["meta"]["x"]["compute"] == [1000.0, 2000.0, 3000.0, 4000.0]
    assert trace["meta"]["x"]["seconds"] == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_the_clean_loss_is_drawn_because_every_method_has_it(make_run: MakeRun) -> None:
    (trace,) = chart(draw(make_run("r")), "train-loss")
    assert trace["y"][:2] == [1.0, 0.5]


def test_many_steps_are_averaged_and_none_is_lost(make_run: MakeRun) -> None:
    steps = 4 * POINTS + 1
    (trace,) = chart(draw(make_run("r", steps=steps)), "train-loss")
    assert len(trace["y"]) <= POINTS
    size = -(-steps // POINTS)
    assert trace["y"][0] == pytest.approx(sum(1 / s for s in range(1, size + 1)) / size, rel=1e-5)
    assert trace["x"][0] == pytest.approx((size + 1) / 2 / 10, rel=1e-5)


def test_an_axis_that_one_run_lacks_is_not_offered(make_run: MakeRun) -> None:
    whole, cut = make_run("a"), make_run("b", batch=7)
    (cut / "timing.jsonl").unlink()
    assert [axis.slug for axis in shared_axes(draw(whole, cut))] == ["epoch", "compute"]


def test_runs_without_metrics_make_no_empty_panel(make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text("")
    assert draw(folder) == []
    lines = [{"kind": "train", "step": 1, "epoch": 1, "loss": None, "accuracy": 0.5}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [chart.slug for chart in draw(folder)] == ["train-accuracy"]


def test_cost_bars_are_multiples_of_ordinary_training(four_runs: list[Path]) -> None:
    compute, time = cost_bars(cells(find_runs(four_runs)))
    assert [bar.value for bar in compute.bars] == ["1.00×", "2.67×", "2.00×"]
    assert [bar.width for bar in compute.bars] == pytest.approx([37.5, 100, 75])
    assert compute.one == pytest.approx(37.5)
    assert (compute.title, time.title) == ("Compute, batch 1,000", "Step time, batch 1,000")


def test_no_bars_without_ordinary_training_beside(make_run: MakeRun) -> None:
    folders = [make_run("v", batch=100), make_run("r", schedule="recycled", batch=200)]
    assert cost_bars(cells(find_runs(folders))) == []

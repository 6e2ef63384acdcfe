"""Drawings: where points lie on each axis, how many there are, and that none hides another."""

import json
import re
from pathlib import Path

import pytest

from conadv.lab.report import find_runs
from conadv.lab.report.charts.curves import POINTS, cost_bars, curves, shared_axes
from conadv.lab.report.charts.palette import colours
from conadv.lab.report.charts.panels import Chart, Mark, Panel, Series, dots, multiples
from conadv.lab.report.charts.svg import SYMBOLS, Scale, symbol, ticks
from conadv.lab.report.study.cells import cells
from lab.report.conftest import MakeRun


def draw(*folders: Path) -> list[Chart]:
    runs = find_runs(folders)
    return curves(runs, colours((cell.key, cell.batch) for cell in cells(runs)))


def panels(charts: list[Chart], slug: str) -> dict[str, tuple[Panel, ...]]:
    return dict(next(chart for chart in charts if chart.slug == slug).by_axis)


def places(panel: Panel) -> list[list[tuple[float, float]]]:
    """The corners of every line of the panel that defines them."""
    lines = re.findall(r'<polyline [^>]*points="([^"]*)"', panel.svg)
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]
        for line in lines
    ]


def test_every_axis_of_every_curve(make_run: MakeRun) -> None:
    charts = draw(make_run("r", schedule="recycled", batch=100))
    slugs = [chart.slug for chart in charts]
    assert sorted(slugs) == ["train-accuracy", "train-loss", "val-accuracy", "val-loss"]
    drawn = panels(charts, "val-accuracy")
    assert list(drawn) == ["epoch", "compute", "seconds"]
    # Evaluations know their step alone: the rest comes from the training steps around them, so
    # that four of them lie evenly on every axis, which begins at 0.
    for (panel,) in drawn.values():
        ((a, y0), (b, _), (c, _), (d, y3)) = places(panel)[0]
        assert y0 == y3 and b - a == pytest.approx(c - b, abs=0.11) == pytest.approx(
            d - c, abs=0.11
        )
        assert a - 50 == pytest.approx((d - 50) / 4, abs=0.2)


def test_the_clean_loss_is_drawn_because_every_method_has_it(make_run: MakeRun) -> None:
    (panel,) = panels(draw(make_run("r")), "train-loss")["epoch"]
    (line,) = places(panel)
    heights = [y for _, y in line]
    # 1, 1/2, 1/3, 1/4: the halves of the way down.
    assert (heights[1] - heights[0]) / (heights[3] - heights[0]) == pytest.approx(2 / 3, abs=0.01)


def test_many_steps_are_averaged_and_none_is_lost(make_run: MakeRun) -> None:
    steps = 4 * POINTS + 1
    (panel,) = panels(draw(make_run("r", steps=steps)), "train-loss")["epoch"]
    (line,) = places(panel)
    assert POINTS / 2 < len(line) <= POINTS
    assert line[-1][0] == pytest.approx(318, abs=2), "to the right end"


def test_an_axis_that_one_run_lacks_is_not_offered(make_run: MakeRun) -> None:
    whole, cut = make_run("a"), make_run("b", batch=7)
    (cut / "timing.jsonl").unlink()
    assert [axis.slug for axis in shared_axes(find_runs([whole, cut]))] == ["epoch", "compute"]
    assert list(panels(draw(whole, cut), "train-loss")) == ["epoch", "compute"]


def test_ten_methods_have_ten_panels_and_each_line_is_written_once() -> None:
    series = [
        Series(f"method {n}", f"batch {n}", f"var(--m{n})", "", ((1.0, n), (2.0, n + 1.0)))
        for n in range(10)
    ]
    drawn = multiples(series, "epochs", "loss", slug="many")
    assert [panel.title for panel in drawn] == [f"method {n}" for n in range(10)]
    assert sum(panel.svg.count("<polyline") for panel in drawn) == 10
    for n, panel in enumerate(drawn):
        assert f'href="#many-{n}" class="own' in panel.svg
        assert panel.svg.count('class="own') == 1


def test_lines_of_one_method_are_explained_in_its_heading() -> None:
    points = ((1.0, 1.0), (2.0, 2.0))
    series = [
        Series("recycled", "batch 10", "var(--m0)", "", points, dash="dash"),
        Series("recycled", "batch 20", "var(--m0)", "", points),
    ]
    (panel,) = multiples(series, "epochs", "loss", slug="one")
    assert panel.lines == (("dash", "batch 10"), ("solid", "batch 20"))


def test_a_row_says_its_figure_and_its_interval() -> None:
    marks = [
        Mark("recycled 2.00×", 1.5, (-0.5, 3.5), "var(--m1)", "square", "+1.5"),
        Mark("a method with a name that takes two lines", 0.0, None, "var(--m2)", "x-open", "0.0"),
    ]
    drawn = dots(marks, "points", (-1.0, 4.0), 0.0)
    assert "<title>recycled 2.00×: +1.5 (\N{MINUS SIGN}0.5 to 3.5)</title>" in drawn
    assert drawn.count('class="whisker"') == 1 and 'class="hollow"' in drawn
    assert drawn.count('class="zero"') == 1
    assert ">a method with a<" in drawn and ">name that takes two<" in drawn


def test_words_in_a_drawing_stay_words() -> None:
    (panel,) = multiples(
        [Series("<b>", "<i>", "var(--m0)", "circle", ((1.0, 1.0),))], "<u>", "&", slug="s"
    )
    assert "<b>" not in panel.svg and "<u>" not in panel.svg and "&lt;u&gt;" in panel.svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (-3.2, 2.2, [-2, 0, 2]),
        (53.4, 57.1, [54, 55, 56, 57]),
        (0, 80000, [0, 20000, 40000, 60000, 80000]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4 if high < 1000 else 5) == pytest.approx(expected)


def test_a_logarithmic_scale_in_closed_form() -> None:
    place = Scale(100, 10_000, 0, 200, logarithmic=True)
    assert [place(100), place(1000), place(10_000)] == pytest.approx([0, 100, 200])


def test_symbols_differ() -> None:
    assert len({symbol(name, 0, 0) for name in SYMBOLS}) == len(SYMBOLS)


def test_runs_without_metrics_make_no_empty_panel(make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text("")
    assert draw(folder) == []
    lines = [{"kind": "train", "step": 1, "epoch": 1, "loss": None, "accuracy": 0.5}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (chart,) = draw(folder)
    assert chart.slug == "train-accuracy" and list(dict(chart.by_axis)) == ["epoch", "seconds"]


def test_cost_bars_are_multiples_of_ordinary_training(four_runs: list[Path]) -> None:
    compute, time = cost_bars(cells(find_runs(four_runs)))
    assert [bar.value for bar in compute.bars] == ["1.00×", "2.67×", "2.00×"]
    assert [bar.width for bar in compute.bars] == pytest.approx([37.5, 100, 75])
    assert compute.one == pytest.approx(37.5)
    assert (compute.title, time.title) == ("Compute, batch 1,000", "Step time, batch 1,000")


def test_no_bars_without_ordinary_training_beside(make_run: MakeRun) -> None:
    folders = [make_run("v", batch=100), make_run("r", schedule="recycled", batch=200)]
    assert cost_bars(cells(find_runs(folders))) == []

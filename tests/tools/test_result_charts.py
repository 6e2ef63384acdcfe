"""Charts of results: what is drawn is what was measured, and names do not lie on one another."""

from xml.etree import ElementTree

import pytest

from conadv.lab.report.charts.panels import Series
from support.tools import load_tool

result_charts = load_tool("result_charts")
SVG = "{http://www.w3.org/2000/svg}"
PERCENT = result_charts.Axis("test accuracy (%)", (0.0, 100.0), (0.0, 50.0, 100.0))
BATCHES = result_charts.Axis("images", (100.0, 10_000.0), (100.0, 9_000.0, 10_000.0), True)


def drawn(series: list[Series], **options: object) -> ElementTree.Element:
    text = result_charts.labelled("a study", series, BATCHES, PERCENT, "light", **options)
    return ElementTree.fromstring(text)


def lines(root: ElementTree.Element, css: str) -> list[tuple[float, ...]]:
    return [
        tuple(float(one.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
        for one in root.iter(f"{SVG}line")
        if one.attrib["class"] == css
    ]


def joined(root: ElementTree.Element) -> list[list[tuple[float, ...]]]:
    return [
        [tuple(map(float, place.split(","))) for place in one.attrib["points"].split()]
        for one in root.iter(f"{SVG}polyline")
        if one.attrib["class"].startswith("own")
    ]


def written(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    return {
        one.text or "": (float(one.attrib["x"]), float(one.attrib["y"]))
        for one in root.iter(f"{SVG}text")
    }


def test_points_intervals_and_numbers_share_their_scales() -> None:
    points = ((100.0, 0.0), (1000.0, 50.0), (10_000.0, 100.0))
    root = drawn([Series("", "a", "#111", "circle", points, ((0.0, 50.0), None, None))])
    (places,) = joined(root)
    middle = [(places[0][n] + places[2][n]) / 2 for n in (0, 1)]
    assert places[1] == pytest.approx(middle, abs=0.1)  # by the logarithm
    (whisker,) = lines(root, "whisker")
    assert whisker == pytest.approx((*places[0], places[0][0], places[1][1]), abs=0.1)
    beside = written(root)
    assert beside["50"][1] == pytest.approx(places[1][1] + 4, abs=0.1)
    assert beside["10,000"][0] == pytest.approx(places[2][0], abs=0.1)
    assert beside["10,000"][1] > beside["9,000"][1]  # too near for one row
    assert beside["100"][1] == beside["9,000"][1]


def test_names_stand_beside_the_plot_in_the_order_of_the_ends_and_apart() -> None:
    ends = {"low": 50.0, "high": 50.2, "middle": 50.1}
    series = [Series("", n, "#111", "circle", ((100.0, 0.0), (1e4, y))) for n, y in ends.items()]
    beside = written(drawn(series, apart=6.0))
    assert {beside[name][0] for name in ends} == {result_charts.LABELS}
    rows = [beside[name][1] for name in ("high", "middle", "low")]
    assert rows[1] - rows[0] >= result_charts.LINE and rows[2] - rows[1] >= result_charts.LINE
    one, two, three = joined(drawn(series, apart=6.0))
    assert (two[0][0] - one[0][0], three[0][0] - two[0][0]) == pytest.approx((6.0, 6.0))


def test_points_that_no_line_joins_and_intervals_across() -> None:
    alone = Series("", "a", "#111", "circle", ((1000.0, 50.0),), ((40.0, 60.0),), dash="")
    root = drawn([alone], across=[(100.0, 10_000.0)])
    assert joined(root) == []
    upright, level = lines(root, "whisker")
    assert upright[0] == upright[2] and level[1] == level[3]
    assert (level[0] + level[2]) / 2 == pytest.approx(upright[0], abs=0.1)


def test_every_measured_batch_of_the_stated_study_is_drawn() -> None:
    name, text = next(iter(result_charts.over_batches("dark")))
    root = ElementTree.fromstring(text)
    cells = result_charts.page("evidence-weights").cells
    assert name == "batch-evidence-weights"
    assert len(lines(root, "whisker")) == len(cells) == sum(len(places) for places in joined(root))
    assert {cell.key.method for cell in cells} <= set(written(root))
    assert {"125", "2,500", "5,000"} <= set(written(root))  # those still to come as well

"""Accuracy over compute: where symbols and names lie, and that none hides another."""

import itertools
import re

import pytest

from conadv.lab.report.charts.panels import Mark
from conadv.lab.report.charts.scatter import (
    APART,
    GAP,
    LABELS,
    LINE,
    TOP,
    dodged,
    names_height,
    scatter,
    spread,
)
from conadv.lab.report.charts.svg import symbol


def test_names_stay_where_they_are_wanted_if_there_is_room() -> None:
    assert spread([10, 50, 90], [20, 20, 20], 0, 100) == [10, 50, 90]


@pytest.mark.parametrize("wanted", [[50, 50, 50], [0, 0, 100], [95, 96, 97], [0, 1, 2]])
def test_names_never_touch_and_stay_inside(wanted: list[float]) -> None:
    heights = [20.0, 40.0, 20.0]
    middles = spread(wanted, heights, 5, 90)
    edges = [(m - h / 2, m + h / 2) for m, h in zip(middles, heights, strict=True)]
    assert edges[0][0] >= 5 and edges[-1][1] <= 90
    assert all(above[1] <= below[0] for above, below in itertools.pairwise(edges))


def test_symbols_of_one_cost_stand_side_by_side_around_it() -> None:
    places = dodged([100.0, 20.0, 100.0, 101.0])
    assert places[1] == 20
    assert places[2] - places[0] == pytest.approx(APART)
    assert (places[0] + places[2] + places[3] - 1) / 3 == pytest.approx(100)


def marks(count: int) -> list[tuple[float, Mark]]:
    names = [f"method {n}, of which the name is long" for n in range(count)]
    return [
        (2.0, Mark(name, 88 + 0.01 * n, (87.0, 89.0), "var(--m0)", "circle", "88"))
        for n, name in enumerate(names)
    ]


def test_every_method_is_named_once_and_none_over_another() -> None:
    ten = marks(10)
    height = names_height([mark for _, mark in ten])
    assert height == 10 * (2 * LINE + GAP)
    drawn = scatter(ten, "compute", "accuracy", (0.8, 4.0), (86.0, 90.0), height)
    lines = re.findall(rf'x="{LABELS:.1f}" y="([\d.]+)"[^>]*>([^<]+)<', drawn)
    assert len(lines) == 20 and len({words for _, words in lines}) == 11
    downs = sorted(float(y) for y, _ in lines)
    assert min(b - a for a, b in itertools.pairwise(downs)) >= LINE - 0.1
    assert downs[0] > TOP and downs[-1] < TOP + height
    assert drawn.count('class="whisker"') == drawn.count('class="leader"') == 10
    # The best stands on top.
    assert lines[0][1].startswith("method 9")


def test_figures_lie_on_both_axes() -> None:
    one = [(1.0, marks(1)[0][1]), (2.0, marks(1)[0][1]), (4.0, marks(1)[0][1])]
    drawn = scatter(one, "c", "a", (1.0, 4.0), (86.0, 90.0), 100.0, [(1.0, 86.0), (4.0, 90.0)])
    (line,) = re.findall(r'class="target" fill="none" points="([^"]+)"', drawn)
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in line.split())
    assert (y1, y2) == (TOP + 100, TOP)
    # 88 lies half way up, and twice the compute half way between one and four times.
    shape = symbol("circle", (x1 + x2) / 2, TOP + 50).partition('d="')[2].partition('"')[0]
    assert shape in drawn
    assert "at 2.00× (87 to 89)" in drawn
    assert [f">{n}×<" in drawn for n in ("0.5", 1, 2, 4, 8)] == [False, True, True, True, False]

"""A figure against its cost: a symbol for each method, and its name at the side."""

import textwrap
from collections.abc import Sequence

from conadv.lab.report.charts.panels import WIDTH, Mark
from conadv.lab.report.charts.svg import (
    Scale,
    line,
    path_points,
    svg,
    symbol,
    text,
    tick_text,
    ticks,
)
from conadv.lab.report.text import TIMES, ratio

LEFT, RIGHT, TOP, FOOT = 38.0, 196.0, 20.0, 36.0
"""Where the plot lies, and how much is below it."""
LABELS = RIGHT + 14
"""Where the names begin."""
WRAP = 21
"""Characters of a name on one line."""
LINE = 13.0
"""Height of a line of a name."""
GAP = 4.0
"""Between two names."""
APART = 6.0
"""Between symbols of the same cost."""
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Numbers below the horizontal axis."""


def names_height(marks: Sequence[Mark]) -> float:
    """Pixels that the names take, one below the other."""
    return sum(_height(mark) for mark in marks)


def scatter(
    marks: Sequence[tuple[float, Mark]],
    x_title: str,
    y_title: str,
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    height: float,
    through: Sequence[tuple[float, float]] = (),
) -> str:
    """Draw every mark over its cost, and its name on the right, joined by a thin line.

    Args:
        marks: Cost as a multiple, above 0, and figure.
        x_title: Of the horizontal axis, which is logarithmic.
        y_title: Of the vertical axis.
        x_span: Ends of the first, shared by the panels of a chart.
        y_span: Ends of the second.
        height: Of the plot, at least :func:`names_height`.
        through: Places that a dotted line joins, costs rising.
    """
    bottom = TOP + height
    x = Scale(*x_span, LEFT + 8, RIGHT, logarithmic=True)
    y = Scale(*y_span, bottom, TOP)
    parts = [text(4, 10, y_title, css="axis")]
    for value in ticks(*y_span, 5):
        parts.append(line(LEFT, y(value), RIGHT, y(value), "grid"))
        parts.append(text(LEFT - 5, y(value) + 4, tick_text(value), "end"))
    for value in (one for one in MULTIPLES if x_span[0] <= one <= x_span[1]):
        parts.append(line(x(value), TOP, x(value), bottom, "grid"))
        parts.append(text(x(value), bottom + 15, f"{value:g}{TIMES}", "middle"))
    parts.append(text(LEFT, bottom + 31, x_title, css="axis"))
    if len(through) > 1:
        places = path_points([(x(a), y(b)) for a, b in through])
        parts.append(f'<polyline class="target" fill="none" points="{places}"/>')
    order = sorted(range(len(marks)), key=lambda n: -marks[n][1].value)
    across = dodged([x(cost) for cost, _ in marks])
    down = spread(
        [y(marks[n][1].value) for n in order],
        [_height(marks[n][1]) for n in order],
        TOP,
        bottom,
    )
    for n, middle in zip(order, down, strict=True):
        cost, mark = marks[n]
        parts.append(_drawn(mark, cost, (across[n], y(mark.value)), middle, y))
    return svg(WIDTH, bottom + FOOT, parts, f"{y_title} against {x_title}")


def spread(
    wanted: Sequence[float], heights: Sequence[float], top: float, bottom: float
) -> list[float]:
    """Middles of things as near to where they are wanted as they can be without touching.

    Args:
        wanted: Middles, falling down the page.
        heights: Of each; together at most ``bottom - top``.
        top: Where the first may begin.
        bottom: Where the last has to end.
    """
    begins = []
    for middle, height in zip(wanted, heights, strict=True):
        top = max(middle - height / 2, top)
        begins.append(top)
        top += height
    for n in reversed(range(len(begins))):
        begins[n] = min(begins[n], bottom - heights[n])
        bottom = begins[n]
    return [begin + height / 2 for begin, height in zip(begins, heights, strict=True)]


def dodged(places: Sequence[float]) -> list[float]:
    """Places of which those that nearly coincide stand side by side."""
    groups: list[list[int]] = []
    for n in sorted(range(len(places)), key=lambda n: places[n]):
        if groups and places[n] - places[groups[-1][0]] < APART:
            groups[-1].append(n)
        else:
            groups.append([n])
    found = list(places)
    for group in groups:
        for rank, n in enumerate(sorted(group)):
            found[n] += APART * (rank - (len(group) - 1) / 2)
    return found


def _drawn(mark: Mark, cost: float, at: tuple[float, float], middle: float, y: Scale) -> str:
    across, down = at
    words = _lines(mark)
    parts = [f'<g style="--c:{mark.colour}">{leader(at, middle, RIGHT, LABELS)}']
    if mark.ends is not None:
        parts.append(line(across, y(mark.ends[0]), across, y(mark.ends[1]), "whisker"))
    parts += [symbol(mark.symbol, across, down, title=mark.said(f" at {ratio(cost)}")), "</g>"]
    return "".join([*parts, *name_at(LABELS, middle, words)])


def leader(at: tuple[float, float], middle: float, right: float, labels: float) -> str:
    """The thin line from a symbol to its name: level to the edge of the plot, then slanting.

    Args:
        at: Where the symbol is.
        middle: How far down the name is.
        right: The edge of the plot.
        labels: Where the names begin.
    """
    points = path_points([at, (right, at[1]), (labels - 4, middle)])
    return f'<polyline class="leader" points="{points}"/>'


def name_at(left: float, middle: float, words: Sequence[str]) -> list[str]:
    """The lines of a name, their middle at a place."""
    first = middle + 4 - LINE / 2 * (len(words) - 1)
    return [text(left, first + LINE * n, word) for n, word in enumerate(words)]


def _lines(mark: Mark) -> list[str]:
    return textwrap.wrap(mark.label, WRAP) or [""]


def _height(mark: Mark) -> float:
    return LINE * len(_lines(mark)) + GAP

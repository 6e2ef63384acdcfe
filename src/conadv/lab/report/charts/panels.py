"""Small multiples: one panel a method or a batch, so that ten methods never lie on one another."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

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

WIDTH = 340.0
"""Of a panel, in pixels where it is shown at its natural size."""
_LABELS, _VALUES, _BOTTOM = 132.0, 46.0, 36.0
_LEFT, _RIGHT, _TOP, _HEIGHT = 44.0, 22.0, 12.0, 190.0
_WRAP = 19
"""Characters of a row's label that fit on one line."""


@dataclass(frozen=True)
class Panel:
    """One drawing of a chart: its heading, the SVG, and line styles that the heading explains."""

    title: str
    svg: str
    colour: str = ""
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes:
        slug: Its id on the page.
        title: What it shows.
        note: A sentence on how it was made.
        panels: The drawings, or for a chart whose horizontal axis the reader can choose those of
            the first axis.
        by_axis: Those of every axis, by its slug; empty for a chart with one axis.
    """

    slug: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    by_axis: tuple[tuple[str, tuple[Panel, ...]], ...] = ()


@dataclass(frozen=True)
class Mark:
    """A figure with its interval.

    Attributes:
        label: What it belongs to.
        value: The figure.
        ends: Its interval, or None where it is not known.
        colour: CSS colour.
        symbol: Of the palette.
        written: The figure as text.
    """

    label: str
    value: float
    ends: tuple[float, float] | None
    colour: str
    symbol: str
    written: str

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest number that it reaches."""
        return self.ends or (self.value, self.value)

    def said(self, where: str = "") -> str:
        """What a reader who points at it is told; ``where`` stands behind the figure."""
        return f"{self.label}: {self.written}{where}{_in_brackets(self.ends)}"


@dataclass(frozen=True)
class Series:
    """Points of a line.

    Attributes:
        group: The panel it is drawn in.
        name: What tells it from the others there.
        colour: CSS colour.
        symbol: Of the palette; empty draws no symbols.
        points: x and y, x rising.
        ends: The interval of each point; empty for none.
        dash: Line style.
    """

    group: str
    name: str
    colour: str
    symbol: str
    points: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, float] | None, ...] = ()
    dash: str = "solid"


def span_of(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """The ends of an axis: all the values and a little air; with 0 if asked for."""
    low, high = min(values), max(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def dots(marks: Sequence[Mark], axis: str, span: tuple[float, float], line_at: float | None) -> str:
    """One row for each mark: its name, a symbol on its interval, and the figure written out.

    Args:
        marks: In the order of the rows.
        axis: Title of the horizontal axis.
        span: Its ends, shared by the panels of a chart.
        line_at: Where a line goes through all rows, or None.
    """
    x = Scale(*span, _LABELS + 8, WIDTH - _VALUES - 8)
    labels = [textwrap.wrap(mark.label, _WRAP) or [""] for mark in marks]
    heights = [max(24.0, 14.0 * len(label) + 8.0) for label in labels]
    foot = 4 + sum(heights)
    parts = [line(x(value), 4, x(value), foot, "grid") for value in ticks(*span, 4)]
    parts += [text(x(v), foot + 14, tick_text(v), "middle") for v in ticks(*span, 4)]
    parts.append(text((x.start + x.end) / 2, foot + 30, axis, "middle", "axis"))
    if line_at is not None:
        parts.append(line(x(line_at), 4, x(line_at), foot, "zero"))
    top = 4.0
    for mark, label, height in zip(marks, labels, heights, strict=True):
        middle = top + height / 2
        first = middle + 4 - 7 * (len(label) - 1)
        parts += [text(_LABELS, first + 14 * n, words, "end") for n, words in enumerate(label)]
        parts.append(f'<g style="--c:{mark.colour}">')
        if mark.ends is not None:
            parts.append(line(x(mark.ends[0]), middle, x(mark.ends[1]), middle, "whisker"))
        parts.append(symbol(mark.symbol, x(mark.value), middle, 4.5, mark.said()))
        parts.append("</g>" + text(WIDTH, middle + 4, mark.written, "end", "figure"))
        top += height
    return svg(WIDTH, foot + _BOTTOM, parts, axis)


def _in_brackets(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" ({' to '.join(map(tick_text, ends))})"


def multiples(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    slug: str,
    x_ticks: Sequence[float] = (),
    logarithmic: bool = False,
    zero: bool = False,
    line_at: float | None = None,
) -> tuple[Panel, ...]:
    """One panel for each group of lines, with all the others in the background.

    Args:
        series: Every line.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
        slug: Unique on the page: the lines are drawn once and used in every panel.
        x_ticks: Where the horizontal axis has numbers; empty chooses.
        logarithmic: Whether it is.
        zero: Whether it begins at 0.
        line_at: Height of a line through all panels, or None.
    """
    xs = [a for one in series for a, _ in one.points]
    ys = [b for one in series for _, b in one.points]
    ys += [end for one in series for ends in one.ends if ends for end in ends]
    ys += [] if line_at is None else [line_at]
    low, high = (0.0 if zero else min(xs)), max(xs)
    x = Scale(low, high, _LEFT + 6, WIDTH - _RIGHT, logarithmic)
    y = Scale(*span_of(ys), _HEIGHT, _TOP + 8)
    frame = _frame(x, y, x_title, y_title, x_ticks or ticks(low, high))
    if line_at is not None:
        frame.append(line(_LEFT, y(line_at), WIDTH - _RIGHT, y(line_at), "target"))
    places = [path_points([(x(a), y(b)) for a, b in one.points]) for one in series]
    shapes = "".join(
        f'<polyline id="{slug}-{n}" fill="none" points="{place}"/>'
        for n, place in enumerate(places)
    )
    panels: list[Panel] = []
    for group in dict.fromkeys(one.group for one in series):
        own = [(n, one) for n, one in enumerate(series) if one.group == group]
        behind = f'<use href="#{slug}-all" class="others"/>'
        if not panels:
            behind = f'<g class="others"><g id="{slug}-all">{shapes}</g></g>'
        parts = [*frame, behind, *(_own(f"{slug}-{n}", one, x, y) for n, one in own)]
        panels.append(
            Panel(
                group,
                svg(WIDTH, _HEIGHT + _BOTTOM, parts, f"{group}: {y_title} against {x_title}"),
                own[0][1].colour,
                tuple((one.dash, one.name) for _, one in own) if len(own) > 1 else (),
            )
        )
    return tuple(panels)


def _frame(x: Scale, y: Scale, x_title: str, y_title: str, x_ticks: Sequence[float]) -> list[str]:
    parts = [text(4, 10, y_title, css="axis")]
    for value in ticks(y.low, y.high, 4):
        parts.append(line(_LEFT, y(value), WIDTH - _RIGHT, y(value), "grid"))
        parts.append(text(_LEFT - 6, y(value) + 4, tick_text(value), "end"))
    last = -1e9
    for value in x_ticks:
        if x(value) - last > 34:  # the numbers would touch
            parts.append(text(x(value), _HEIGHT + 15, tick_text(value), "middle"))
            last = x(value)
    return [*parts, text((_LEFT + WIDTH) / 2, _HEIGHT + 31, x_title, "middle", "axis")]


def _own(ident: str, one: Series, x: Scale, y: Scale) -> str:
    parts = [f'<g style="--c:{one.colour}"><use href="#{ident}" class="own {one.dash}"/>']
    for (a, b), ends in zip(one.points, one.ends or (None,) * len(one.points), strict=True):
        if ends is not None:
            parts.append(line(x(a), y(ends[0]), x(a), y(ends[1]), "whisker"))
        if one.symbol:
            title = f"{one.name}: {tick_text(b)} at {tick_text(a)}{_in_brackets(ends)}"
            parts.append(symbol(one.symbol, x(a), y(b), title=title))
    return "".join(parts) + "</g>"

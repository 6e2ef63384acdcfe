"""Drawings of a plan as inline SVG: lines over numbers of devices, and a step's parts as bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from conadv.lab.report.charts.svg import Scale, line, path_points, svg, symbol, text

WIDTH, HEIGHT = 430.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 18.0, 14.0, 46.0
MOST_DEVICES = 4096
"""End of the horizontal axis on the right, unless a plan goes further."""
Row = Mapping[str, Any]

PARTS = (
    ("compute", "compute"),
    ("attack", "attack"),
    ("exposed", "network, exposed"),
    ("other", "optimizer, copying"),
    ("waiting", "waiting for images"),
)
"""Parts of a step in the order of the bars: class and name."""


@dataclass(frozen=True)
class Line:
    """One schedule over numbers of devices."""

    css: str
    name: str
    symbol: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A point of somebody else's."""

    x: float
    y: float
    text: str
    source: str


def line_chart(
    lines: Sequence[Line],
    marks: Sequence[Mark],
    ticks: Sequence[tuple[float, str]],
    title: str,
    logarithmic: bool,
) -> str:
    """Lines over numbers of devices.

    Args:
        lines: values over devices, all above 0.
        marks: points beside the lines.
        ticks: (value, text) of the vertical axis, rising; the first and last are its ends.
        title: of the vertical axis.
        logarithmic: whether that axis is.
    """
    most = max([MOST_DEVICES, *(x for line in lines for x, _ in line.points)])
    x = Scale(1, most, LEFT, WIDTH - RIGHT, True)
    y = Scale(ticks[0][0], ticks[-1][0], HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_horizontal(y(value), words) for value, words in ticks]
    for d in (4**k for k in range(int(math.log(most, 4) + 1e-9) + 1)):
        parts.append(text(x(d), HEIGHT - BOTTOM + 18, f"{d:,}", "middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "devices", "middle", "axis"))
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(14 '
        f'{(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)">{escape(title)}</text>'
    )
    for one in lines:
        places = [(x(a), y(b)) for a, b in one.points]
        parts.append(f'<g class="{one.css}"><polyline points="{path_points(places)}"/>')
        for (a, _), place in zip(one.points, places, strict=True):
            parts.append(symbol(one.symbol, *place, title=f"{one.name}, {a:,.0f} devices"))
        parts.append("</g>")
    return svg(WIDTH, HEIGHT, [*parts, *_published(marks, x, y)], title)


def _published(marks: Sequence[Mark], x: Scale, y: Scale) -> list[str]:
    """Rings with a letter each: beside the ring where that place is free, else the next one."""
    parts, taken = [], [(x(mark.x), y(mark.y)) for mark in marks]
    for mark in marks:
        a, b = x(mark.x), y(mark.y)
        around = [(a + 12, b + 4), (a - 12, b + 4), (a, b - 9), (a, b + 17), (a + 12, b - 9)]
        place = max(around, key=lambda one: min(math.dist(one, other) for other in taken))
        taken.append(place)
        parts.append(
            f'<g class="published"><circle cx="{a:.1f}" cy="{b:.1f}" r="5"/>'
            f"{text(*place, mark.text, 'middle')}<title>{escape(mark.source)}</title></g>"
        )
    return parts


def bar_chart(rows: Sequence[Row], names: Mapping[str, str], unit: tuple[float, str]) -> str:
    """One bar per schedule, the step's parts end to end.

    Args:
        rows: of the plan, one number of devices.
        names: of schedules.
        unit: seconds of one unit of the axis, and what it is called.
    """
    left, high = 118.0, max(row["step_seconds"] for row in rows)
    x = Scale(0.0, high, left, WIDTH - 70.0)
    out = []
    for place, row in enumerate(rows):
        top = 12 + 34 * place
        out.append(text(left - 8, top + 16, names[row["schedule"]], "end"))
        start = 0.0
        for css, seconds in step_parts(row).items():
            wide = x(start + seconds) - x(start)
            out.append(
                f'<rect class="{css}" x="{x(start):.1f}" y="{top}" width="{wide:.2f}" '
                f'height="22"><title>{dict(PARTS)[css]}: {seconds / unit[0]:.3g} {unit[1]}'
                "</title></rect>"
            )
            start += seconds
        shown = f"{row['step_seconds'] / unit[0]:.3g} {unit[1]}"
        out.append(text(x(start) + 6, top + 16, shown))
    return svg(WIDTH, 18 + 34.0 * len(rows), out, "parts of a step")


def step_parts(row: Row) -> dict[str, float]:
    """Seconds of each of the PARTS; they add up to the step."""
    parts = row["parts"]
    device = sum(parts[name] for name in ("train", "attack", "host", "update", "exposed"))
    return {
        "compute": parts["train"],
        "attack": parts["attack"],
        "exposed": parts["exposed"],
        "other": parts["host"] + parts["update"],
        "waiting": max(0.0, parts["loader"] - device),
    }


def _horizontal(y: float, words: str) -> str:
    return line(LEFT, y, WIDTH - RIGHT, y, "grid") + text(LEFT - 7, y + 4, words, "end")

"""Drawings of a plan as inline SVG: lines over numbers of devices, and a step's parts as bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 560.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 24.0, 14.0, 46.0
MOST_DEVICES = 4096
"""Right end of the horizontal axis, unless a plan goes further."""
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


@dataclass(frozen=True)
class Scale:
    """Numbers to places, by their logarithm or as they are."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


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
    parts = [_horizontal(y(value), text) for value, text in ticks]
    for d in (4**k for k in range(int(math.log(most, 4) + 1e-9) + 1)):
        parts.append(_text(x(d), HEIGHT - BOTTOM + 18, f"{d:,}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "devices", "middle", "axis"))
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(14 '
        f'{(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)">{escape(title)}</text>'
    )
    for line in lines:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        parts.append(f'<g class="{line.css}"><polyline points="{path}"/>')
        for a, b in line.points:
            parts.append(
                f'<path d="{_symbol(line.symbol, x(a), y(b))}"><title>{escape(line.name)}, '
                f"{a:,} devices</title></path>"
            )
        parts.append("</g>")
    for mark in marks:
        left = x(mark.x) > WIDTH * 0.7
        parts.append(
            f'<g class="published"><circle cx="{x(mark.x):.1f}" cy="{y(mark.y):.1f}" r="5"/>'
            + _text(x(mark.x) + (-9 if left else 9), y(mark.y) + 4, mark.text, _anchor(left))
            + f"<title>{escape(mark.source)}</title></g>"
        )
    return _svg(HEIGHT, parts, title)


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
        out.append(_text(left - 8, top + 16, names[row["schedule"]], "end"))
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
        out.append(_text(x(start) + 6, top + 16, shown, "start"))
    return _svg(18 + 34.0 * len(rows), out, "parts of a step")


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


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _horizontal(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 7, y + 4, text, "end")


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick") -> str:
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _anchor(left: bool) -> str:
    return "end" if left else "start"


def _symbol(name: str, x: float, y: float, size: float = 4.0) -> str:
    """A path of the palette's symbol around a point."""
    shapes: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle-up": [(0, -1.2), (1.2, 1), (-1.2, 1)],
        "triangle-down": [(0, 1.2), (1.2, -1), (-1.2, -1)],
        "x": [(-1, -0.5), (0.5, -1), (1, 0.5), (-0.5, 1)],
    }
    corners = shapes.get(name)
    if corners is None:
        return f"M{x - size:.1f},{y:.1f}a{size},{size} 0 1,0 {2 * size},0a{size},{size} 0 1,0 " + (
            f"{-2 * size},0Z"
        )
    return "M" + "L".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners) + "Z"


def symbol_sample(name: str) -> str:
    """A symbol for a legend."""
    return f'<svg viewBox="0 0 12 12" class="sample"><path d="{_symbol(name, 6, 6)}"/></svg>'

"""What every drawing is made of: scales, ticks, symbols and text as inline SVG.

Colours are CSS variables of the page and so follow its light, dark or printed form. A shape with a
``<title>`` says its figures under the pointer; nothing needs a script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from conadv.lab.report.text import MINUS, amount, figures


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


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most so many: 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(n * power for n in (1, 2, 5, 10, 20) if span / (n * power) < most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A number below an axis, with a minus that is as wide as a plus."""
    return (amount if abs(value) >= 1e5 else figures)(value).replace("-", MINUS)


def svg(width: float, height: float, parts: Sequence[str], label: str, style: str = "") -> str:
    """The whole drawing, named for those who cannot see it; with a style a file of its own."""
    alone = ' xmlns="http://www.w3.org/2000/svg"' if style else ""
    inside = f"<style>{style}</style>" * bool(style) + "".join(parts)
    return (
        f'<svg{alone} viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{inside}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "tick") -> str:
    """One line of text."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path_points(places: Sequence[tuple[float, float]]) -> str:
    """Places as the ``points`` of a polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def symbol(name: str, x: float, y: float, size: float = 4.0, title: str = "") -> str:
    """A symbol of the palette around a point; hollow where its name ends in ``-open``."""
    kind = name.removesuffix("-open")
    hollow = ' class="hollow"' if kind != name else ""
    corners = "L".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in _CORNERS[kind])
    hover = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="M{corners}Z"{hollow}>{hover}</path>'


def symbol_sample(name: str) -> str:
    """A symbol for a legend."""
    return f'<svg viewBox="0 0 12 12" class="sample" aria-hidden="true">{symbol(name, 6, 6)}</svg>'


def _star(points: int, inner: float = 1.0, outer: float = 1.15) -> list[tuple[float, float]]:
    """Corners on a circle, the first on top; ``inner`` is the radius of those in between."""
    count = points if inner == 1.0 else 2 * points
    radii = [outer if inner == 1.0 or n % 2 == 0 else inner for n in range(count)]
    angles = [2 * math.pi * n / count for n in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


_CORNERS: dict[str, list[tuple[float, float]]] = {
    "circle": _star(20, outer=1.0),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    "triangle-up": [(0, -1.2), (1.2, 1), (-1.2, 1)],
    "triangle-down": [(0, 1.2), (1.2, -1), (-1.2, -1)],
    "x": [(r * math.sin(a), r * math.cos(a)) for n in range(4) for r, a in (
        (1.35, math.pi / 4 + n * math.pi / 2), (0.45, math.pi / 2 + n * math.pi / 2))],
    "star": _star(5, 0.5, 1.4),
    "cross": _star(4, 0.45, 1.35),
    "hexagon": _star(6),
    "pentagon": _star(5),
    "hourglass": [(-1.1, -1.2), (1.1, -1.2), (-1.1, 1.2), (1.1, 1.2)],
    "bowtie": [(-1.2, -1.1), (-1.2, 1.1), (1.2, -1.1), (1.2, 1.1)],
    "star-square": _star(8, 0.7, 1.35),
}  # fmt: skip
SYMBOLS = tuple(_CORNERS)
"""Names that `symbol` knows, each also with ``-open``."""

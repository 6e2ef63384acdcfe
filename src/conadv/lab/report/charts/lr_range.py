"""The picture of a learning-rate range test, as an SVG file."""

import math
from collections.abc import Mapping, Sequence

from conadv.lab.report.charts.svg import Scale, line, path_points, svg, symbol, text, ticks

WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 40.0, 52.0
ROOM = 2.0
"""Losses above so many times the first are cut off: the explosion is no part of the curve."""
_STYLE = """svg{background:#fff;font:12px sans-serif;fill:#1f2328}.title{font-size:15px}
line{stroke:#d0d7de}.axis{stroke:#57606a}polyline{fill:none;stroke:#b4bec9}
.smoothed{stroke:#0969b8;stroke-width:2}path{fill:#bf4a00}"""


def picture(
    points: Sequence[tuple[float, float, float]], named: Mapping[str, float | None], title: str
) -> str:
    """Loss and smoothed loss over the learning rate, on a logarithmic axis, as a whole SVG file.

    Args:
        points: Learning rate, loss and smoothed loss; at least one.
        named: Rates to be marked, by what they are.
        title: Above the picture.
    """
    rates, losses, smoothed = zip(*points, strict=True)
    low, high = min(*losses, *smoothed), min(max(losses), ROOM * smoothed[0])
    high = max(high, *smoothed[: len(points) // 2 + 1])
    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    x = Scale(rates[0], rates[-1], LEFT, right, logarithmic=True)
    y = Scale(low, high, foot, TOP)
    parts = [
        text(LEFT, 22, title, css="title"),
        text(WIDTH / 2, HEIGHT - 10, "learning rate", "middle"),
        text(LEFT, TOP - 6, "loss", "end"),
    ]
    for power in range(math.ceil(math.log10(rates[0])), math.floor(math.log10(rates[-1])) + 1):
        at = x(10.0**power)
        parts += [line(at, TOP, at, foot, "grid"), text(at, foot + 18, f"1e{power}", "middle")]
    parts += [text(LEFT - 6, y(loss) + 4, f"{loss:.3g}", "end") for loss in ticks(low, high)]
    parts += [line(LEFT, foot, right, foot, "axis"), line(LEFT, TOP, LEFT, foot, "axis")]
    for css, curve in (("loss", losses), ("smoothed", smoothed)):
        places = [(x(rate), y(min(loss, high))) for rate, loss in zip(rates, curve, strict=True)]
        parts.append(f'<polyline class="{css}" points="{path_points(places)}"/>')
    for name, rate in named.items():
        if rate is not None:
            nearest = min(range(len(rates)), key=lambda i: abs(rates[i] - rate))
            height = y(min(smoothed[nearest], high))
            parts.append(symbol("circle", x(rate), height, 5))
            parts.append(text(x(rate), height - 10, f"{name} {rate:.2g}", "middle"))
    return svg(WIDTH, HEIGHT, parts, title, style=_STYLE)

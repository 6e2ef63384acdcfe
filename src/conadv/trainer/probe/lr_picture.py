"""The picture of a learning-rate range test, as SVG."""

import math
from collections.abc import Iterable
from html import escape

from conadv.trainer.probe.lr_find import RangeTest

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 40, 52
ROOM = 2.0
"""Losses above so many times the first are cut off: the explosion is no part of the curve."""


def picture(found: RangeTest, title: str) -> str:
    """Loss and smoothed loss over the learning rate, on a logarithmic axis, as a whole SVG file.

    Args:
        found: At least one point of it.
        title: Above the picture.
    """
    points = found.points
    left, right = (math.log10(points[i].learning_rate) for i in (0, -1))
    low = min(min(p.loss, p.smoothed) for p in points)
    high = min(max(p.loss for p in points), ROOM * points[0].smoothed)
    high = max(high, max(p.smoothed for p in points[: len(points) // 2 + 1]))

    def x(rate: float) -> float:
        share = (math.log10(rate) - left) / ((right - left) or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        share = (min(loss, high) - low) / ((high - low) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def line(values: Iterable[tuple[float, float]], style: str) -> str:
        places = " ".join(f"{x(rate):.1f},{y(loss):.1f}" for rate, loss in values)
        return f'<polyline points="{places}" fill="none" {style}/>'

    foot = HEIGHT - BOTTOM
    drawn = [
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<path d="M{LEFT},{TOP}V{foot}H{WIDTH - RIGHT}" fill="none" stroke="#57606a"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">learning rate</text>',
        f'<text x="{LEFT}" y="{TOP - 6}" text-anchor="end">loss</text>',
    ]
    for power in range(math.ceil(left), math.floor(right) + 1):
        place = x(10.0**power)
        drawn.append(
            f'<path d="M{place:.1f},{TOP}V{foot}" stroke="#d0d7de"/>'
            f'<text x="{place:.1f}" y="{foot + 18}" text-anchor="middle">1e{power}</text>'
        )
    for loss in (low + (high - low) * i / 4 for i in range(5)):
        drawn.append(
            f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3g}</text>'
        )
    drawn.append(line(((p.learning_rate, p.loss) for p in points), 'stroke="#b4bec9"'))
    smooth = 'stroke="#0969b8" stroke-width="2"'
    drawn.append(line(((p.learning_rate, p.smoothed) for p in points), smooth))
    for rate, name in ((found.steepest, "steepest fall"), (found.lowest, "lowest")):
        if rate is not None:
            at = min(points, key=lambda p: abs(p.learning_rate - rate))
            drawn.append(
                f'<circle cx="{x(rate):.1f}" cy="{y(at.smoothed):.1f}" r="5" fill="#bf4a00"/>'
                f'<text x="{x(rate):.1f}" y="{y(at.smoothed) - 10:.1f}" text-anchor="middle">'
                f"{name} {rate:.2g}</text>"
            )
    inside = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#1f2328">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{inside}\n</svg>\n'
    )

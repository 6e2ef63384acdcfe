"""Draw the pictures of the documentation from what is committed in `results/`.

    python tools/front_pictures.py   # or: make pictures

Those of the front page and of the gallery are here, the charts of docs/results.md in
`result_charts.py`. Each is made for light and for dark pages. The copies are those of a run of the
quickstart, whose images are Fashion-MNIST's (MIT, see NOTICE).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from picture_parts import FOLDER, FONT, THEMES, shade, style
from result_charts import charts
from study_tables import FORMS, answers
from table_parts import ROOT

from conadv.lab.report.charts.palette import FAMILIES
from conadv.lab.report.charts.panels import WIDTH as PANEL
from conadv.lab.report.charts.panels import Panel, Series, multiples
from conadv.lab.report.charts.pictures import read_pictures, strongest, triples

COPIES = ROOT / "results" / "quickstart" / "recycled-0"
LANDSCAPE = ROOT / "results" / "fashion-cpu" / "runs"
WIDTH = 880
SHOWN = 3
"""Images in the picture of copies."""


def headline(theme: str) -> str:
    """Points above ordinary training of at most the same compute, with their intervals."""
    ink, soft, line = THEMES[theme]
    found = answers()
    places = list(dict.fromkeys(one.place for one in found))
    top, step, left, gap, right = 88, 52, 236, 44, 16
    bottom = top + step * len(places)
    wide = (WIDTH - left - right - gap) / 2
    parts = [
        _text(0, 20, "Test accuracy above ordinary training of at most the same compute", ink, 17),
        *_key(theme, soft),
    ]
    measures = ("same_compute", "robust_same_compute")
    for panel, (title, name) in enumerate(
        zip(("clean images", "images under attack"), measures, strict=True)
    ):
        start = left + panel * (wide + gap)
        measured = [getattr(one.row, name) for one in found]
        ends = [end for one in measured for end in one.interval]
        x, ticks = _scale(min(ends), max(ends), start, wide)
        parts.append(_text(start, top - 12, title, ink, 14, weight=600))
        for tick in ticks:
            colour, thick = (soft, 1.5) if tick == 0 else (line, 1)
            parts.append(
                f'<path d="M{x(tick):.1f} {top}V{bottom}" stroke="{colour}" '
                f'stroke-width="{thick}"/>'
            )
            parts.append(_text(x(tick), bottom + 18, _signed(tick), soft, 12, "middle"))
        for one, value in zip(found, measured, strict=True):
            form = one.row.cell.key.method
            y = top + step * (places.index(one.place) + 0.5) + (9 if form == FORMS[1] else -9)
            low, high = (x(end) for end in value.interval)
            colour = _colour(form, theme)
            parts.append(
                f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{colour}" stroke-width="2.5"/>'
                + _marker(x(value.value), y, form == FORMS[1], colour)
            )
    for number, place in enumerate(places):
        data, images, batch = place.split(", ")
        y = top + step * (number + 0.5)
        parts += [_text(0, y - 2, f"{data}, {batch}", ink, 14), _text(0, y + 15, images, soft, 12)]
    (seeds,) = {one.seeds for one in found}
    note = f"points; lines are intervals of 95 % over {seeds} seeds"
    parts.append(_text(left, bottom + 38, note, soft, 12))
    return _svg(bottom + 48, parts, "Test accuracy above ordinary training, at equal compute")


def copies(theme: str) -> str:
    """Clean image + perturbation = copy, for a few training images."""
    ink, soft, _ = THEMES[theme]
    pictures = read_pictures(COPIES / "pictures.npz")
    size, cell = 84, WIDTH / SHOWN
    parts = []
    of_class = {triple.label: triple for triple in reversed(triples(pictures))}
    for number, triple in enumerate(list(of_class.values())[-SHOWN:]):
        left = number * cell
        parts.append(_text(left, 14, triple.label, ink, 14, weight=600))
        shown = {
            "image": triple.clean,
            "change": triple.perturbation,
            "adversarial copy": triple.adversarial,
        }
        for place, (name, url) in enumerate(shown.items()):
            x = left + place * (size + 5)
            parts.append(
                f'<image href="{url}" x="{x:.0f}" y="24" width="{size}" height="{size}" '
                'style="image-rendering:pixelated"/>'
            )
            parts.append(_text(x + size / 2, 126, name, soft, 12, "middle"))
    note = f"The change, at most {strongest(pictures):.0f} of 255 grey levels, is drawn stronger."
    parts.append(_text(0, 150, note, soft, 12))
    return _svg(158, parts, "Clean images, perturbations and adversarial copies")


def landscape(theme: str) -> str:
    """Training loss along random lines through the weights of two methods, over the seeds."""
    series = []
    for name, method in (("vanilla", "vanilla"), ("recycled", "recycled")):
        lines = [
            line
            for path in sorted(LANDSCAPE.glob(f"{method}-b1000/*/analysis.json"))
            for line in _result(path, "landscape")["lines"]
        ]
        at = lines[0]["positions"]
        heights = [
            statistics.fmean(losses) for losses in zip(*(li["losses"] for li in lines), strict=True)
        ]
        inner = [(x, y) for x, y in zip(at, heights, strict=True) if abs(x) <= 0.5]
        colour = _colour(name, theme)
        series.append(Series(f"{name}, batch 1,000", name, colour, "", tuple(inner)))
    panels = multiples(series, "distance from the weights", "training loss", slug="landscape")
    return _panels(panels, theme, "Training loss around the weights")


def pictures(theme: str) -> dict[str, str]:
    """Every picture by the name of its file."""
    own = {"headline": headline, "copies": copies, "landscape": landscape}
    return {**{name: picture(theme) for name, picture in own.items()}, **charts(theme)}


def main() -> None:
    """Write the files anew."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        old.unlink()
    for theme in THEMES:
        for name, picture in pictures(theme).items():
            (FOLDER / f"{name}-{theme}.svg").write_text(picture, encoding="utf-8")


def _result(path: Path, name: str) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["analyses"][name]["result"]


def _panels(panels: Sequence[Panel], theme: str, label: str) -> str:
    """Panels of a report side by side, with the colours that the page would have given them."""
    ink, _, _ = THEMES[theme]
    parts = [f"<style>{style(theme)}</style>"]
    for number, panel in enumerate(panels):
        left = number * (PANEL + 40)
        parts.append(_text(left + 4, 14, panel.title, ink, 14, weight=600))
        parts.append(
            panel.svg.replace(
                "<svg ", f'<svg x="{left:.0f}" y="24" width="{PANEL:.0f}" height="226" ', 1
            )
        )
    return _svg(254, parts, label)


def _scale(
    low: float, high: float, start: float, wide: float
) -> tuple[Callable[[float], float], list[float]]:
    """Fractions to places, and the ticks of the axis in points."""
    unit = 2 if 100 * (high - low) < 12 else 5
    first, last = math.floor(100 * low / unit) * unit, math.ceil(100 * high / unit) * unit

    def place(value: float) -> float:
        return start + (100 * value - first) / (last - first) * wide

    return place, [tick / 100 for tick in range(first, last + 1, unit)]


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.0f}".replace("-", "\N{MINUS SIGN}") if fraction else "0"


def _colour(form: str, theme: str) -> str:
    colour = FAMILIES["recycled/fixed" if form == FORMS[1] else form].colour
    assert colour is not None
    return shade(colour, theme)


def _key(theme: str, soft: str) -> list[str]:
    parts = []
    words = ("recycled: up to twice the compute", "recycled, fixed budget: no extra compute")
    for number, (form, text) in enumerate(zip(FORMS, words, strict=True)):
        x = 300 * number
        parts.append(_marker(x + 7, 43, number == 1, _colour(form, theme)))
        parts.append(_text(x + 20, 48, text, soft, 13))
    return parts


def _marker(x: float, y: float, diamond: bool, colour: str) -> str:
    turn = f' transform="rotate(45 {x:.1f} {y})"' if diamond else ""
    return f'<rect x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" fill="{colour}"{turn}/>'


def _text(
    x: float, y: float, text: str, colour: str, size: int, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}" font-family="{FONT}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()

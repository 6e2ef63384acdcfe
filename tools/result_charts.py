"""The charts of docs/results.md, drawn from the studies and analyses in `results/`.

`front_pictures.py` writes them with the other pictures. A study that goes on has more points after
it has been published again.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from picture_parts import shade, style
from study_tables import STUDIES, page
from table_parts import ROOT

from conadv.lab.evidence import Paired
from conadv.lab.report.charts.palette import FAMILIES
from conadv.lab.report.charts.panels import Series, span_of
from conadv.lab.report.charts.scatter import APART, GAP, LINE, leader, name_at, spread
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
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import gains
from conadv.lab.report.text import count, ratio

WIDTH, HEIGHT = 360.0, 220.0
"""Of a chart, which has to be read on a telephone, and of its plot at least."""
LEFT, RIGHT, TOP, FOOT = 36.0, 214.0, 46.0, 52.0
LABELS, WRAP = RIGHT + 16, 17
"""Where the names begin, and how many characters of them fit on one line."""
LETTER = 7.5
"""Pixels that a letter may take."""
CONFIRMATORY = {"evidence-weights": "Copies of weights: CIFAR-10"}
DRAWN = CONFIRMATORY | {
    name: f"Copies of images: {data.partition(',')[0]}" for name, data in STUDIES.items()
}
OVER_BATCHES = ("vanilla", "vanilla, 2x steps", "recycled", "recycled, fixed budget", "SAM")
"""Those of a campaign's methods that are drawn over batches; its tables have all."""
STALENESS = ROOT / "results" / "staleness" / "analysis.json"
Ends = tuple[float, float] | None


@dataclass(frozen=True)
class Axis:
    """Title, ends, where the numbers stand, and how numbers become places."""

    title: str
    span: tuple[float, float]
    numbers: Sequence[float]
    logarithmic: bool = False


def charts(theme: str) -> dict[str, str]:
    """Every chart by the name of its file."""
    return {**dict(over_batches(theme)), **dict(robust_over_clean(theme)), **staleness(theme)}


def over_batches(theme: str) -> Iterator[tuple[str, str]]:
    """Test accuracy over batch sizes, one chart a study."""
    for name, title in DRAWN.items():
        found = page(name)
        methods: dict[str, list[Cell]] = {}
        for cell in sorted(found.cells, key=lambda cell: cell.batch or 0):
            if name in CONFIRMATORY or cell.key.method in OVER_BATCHES:
                methods.setdefault(cell.key.method, []).append(cell)
        series = [
            Series(
                method,
                method,
                shade(found.palette[cells[0].key], theme),
                found.palette[cells[0].key].symbol,
                tuple((float(cell.batch or 0), 100 * _accuracy(cell).value) for cell in cells),
                tuple(_hundredfold(_accuracy(cell)) for cell in cells),
            )
            for method, cells in methods.items()
        ]
        batches = _batches(name)
        x = Axis("images per weight update", (batches[0], batches[-1]), batches, True)
        y = _axis("test accuracy (%)", _flat(both for one in series for both in one.ends))
        yield f"batch-{name}", labelled(title, series, x, y, theme, apart=APART)


def robust_over_clean(theme: str) -> Iterator[tuple[str, str]]:
    """Gains under attack over those on clean images, at equal compute; one chart a batch."""
    for name, title in DRAWN.items():
        found = page(name)
        for at in gains(found.cells):
            rows = [row for row in at.rows if row.same_compute and row.robust_same_compute]
            series, across = [], []
            for row in rows:
                assert row.same_compute is not None and row.robust_same_compute is not None
                colour, method = found.palette[row.cell.key], row.cell.key.method
                series.append(
                    Series(
                        method,
                        f"{method} {ratio(row.multiple)}",
                        shade(colour, theme),
                        colour.symbol,
                        ((100 * row.same_compute.value, 100 * row.robust_same_compute.value),),
                        (_hundredfold(row.robust_same_compute),),
                    )
                )
                across.append(_hundredfold(row.same_compute))
            if series:
                x = _axis("points, clean images", _flat(across))
                upright = _flat(both for one in series for both in one.ends)
                y = _axis("points, images under attack", upright)
                place = f"{title.partition(': ')[2]}, batch {count(at.batch)}"
                drawn = labelled(place, series, x, y, theme, across=across)
                yield f"robust-{name}-{at.batch}", drawn


def staleness(theme: str) -> dict[str, str]:
    """Agreement of perturbations by old weights with those by fresh ones, against their age."""
    analysis = json.loads(STALENESS.read_text(encoding="utf-8"))["analyses"]["staleness"]
    pairs = sorted((float(p["tau"]), p["cosine"], p["chance"]) for p in analysis["result"]["pairs"])
    ages = sorted({age for age, _, _ in pairs})
    means = [statistics.fmean(c for age, c, _ in pairs if age == tau) for tau in ages]
    chance = statistics.fmean(chance for _, _, chance in pairs)
    recycled, vanilla = FAMILIES["recycled"].colour, FAMILIES["vanilla"].colour
    assert recycled is not None and vanilla is not None
    ink, soft = shade(recycled, theme), shade(vanilla, theme)
    series = [
        Series("mean", "mean of an age", ink, "", tuple(zip(ages, means, strict=True))),
        Series(
            "pairs", "a pair of steps", ink, "circle", tuple((a, c) for a, c, _ in pairs), dash=""
        ),
        Series("chance", "chance", soft, "", ((ages[0], chance), (ages[-1], chance)), dash="dot"),
    ]
    x = Axis("age of the weights (steps)", (ages[0], ages[-1]), ticks(ages[0], ages[-1]))
    y = _axis("cosine with the fresh perturbation", [0.0, *(c for _, c, _ in pairs)])
    return {"staleness": labelled("Fashion-MNIST, quickstart-recycled", series, x, y, theme)}


def labelled(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    theme: str,
    *,
    across: Sequence[Ends] = (),
    apart: float = 0.0,
) -> str:
    """Draw lines and symbols with their names at the side, as a file of its own.

    Args:
        title: Above the plot.
        series: What is drawn; without a dash no line joins the points.
        x: Horizontal axis.
        y: Vertical axis.
        theme: Of the page around it.
        across: Horizontal interval of each one's only point.
        apart: Pixels between two series at the same place.
    """
    names = [textwrap.wrap(one.name, WRAP) for one in series]
    heights = [LINE * len(words) + GAP for words in names]
    bottom = TOP + max(HEIGHT, sum(heights))
    right = Scale(*x.span, LEFT + 14, RIGHT - 14, x.logarithmic)
    up = Scale(*y.span, bottom, TOP)
    parts = [text(0, 14, title, css="title"), text(0, 36, y.title, css="axis")]
    for value in y.numbers:
        parts.append(line(LEFT, up(value), RIGHT, up(value), "grid" if value else "zero"))
        parts.append(text(LEFT - 5, up(value) + 4, tick_text(value), "end"))
    end, row = -1e9, 0
    for value in x.numbers:
        half = LETTER * len(tick_text(value)) / 2
        end, row = right(value) + half, 1 - row if right(value) - half < end else 0
        parts.append(line(right(value), TOP, right(value), bottom, "grid" if value else "zero"))
        parts.append(text(right(value), bottom + 15 + 13 * row, tick_text(value), "middle"))
    parts.append(text((LEFT + RIGHT) / 2, bottom + 46, x.title, "middle", "axis"))

    places = [
        [(right(a) + apart * (n - (len(series) - 1) / 2), up(b)) for a, b in one.points]
        for n, one in enumerate(series)
    ]
    order = sorted(range(len(series)), key=lambda n: places[n][-1][1])
    wanted, high = [places[n][-1][1] for n in order], [heights[n] for n in order]
    middles = dict(zip(order, spread(wanted, high, TOP, bottom), strict=True))
    for n, one in enumerate(series):
        last = places[n][-1]
        line_to_name = leader(last, middles[n], RIGHT, LABELS)
        parts.append(f'<g style="--c:{one.colour}">{line_to_name}')
        if one.dash:
            points = path_points(places[n])
            parts.append(f'<polyline class="own {one.dash}" fill="none" points="{points}"/>')
        for (a, b), ends in zip(places[n], one.ends or (None,) * len(places[n]), strict=True):
            if ends is not None:
                parts.append(line(a, up(ends[0]), a, up(ends[1]), "whisker"))
            if one.symbol:
                parts.append(symbol(one.symbol, a, b))
        if across and (sides := across[n]) is not None:
            parts.append(line(right(sides[0]), last[1], right(sides[1]), last[1], "whisker"))
        parts.append("</g>")
        parts += name_at(LABELS, middles[n], names[n])
    return svg(WIDTH, bottom + FOOT, parts, f"{title}: {y.title} against {x.title}", style(theme))


def _axis(title: str, values: Sequence[float]) -> Axis:
    span = span_of(values, zero=title.startswith("points"))
    return Axis(title, span, ticks(*span))


def _flat(intervals: Iterable[Ends]) -> list[float]:
    return [end for both in intervals if both for end in both]


def _batches(name: str) -> list[float]:
    """Every batch size of a published study, those with runs still to come included."""
    from conadv.lab.study.files import load_study

    return sorted(map(float, load_study(ROOT / "results" / name / "study.yaml").batches))


def _accuracy(cell: Cell) -> Paired:
    return Paired(tuple(cell.values("test_accuracy")))


def _hundredfold(found: Paired) -> Ends:
    ends = found.interval
    return None if ends is None else (100 * ends[0], 100 * ends[1])

"""The first charts of a page: accuracy against batch size and compute, and under attack."""

from collections.abc import Mapping, Sequence

from conadv.lab.evidence import Paired
from conadv.lab.report.charts.palette import Colour, MethodKey, colour_of
from conadv.lab.report.charts.panels import (
    Chart,
    Mark,
    Panel,
    Series,
    dots,
    multiples,
    span_of,
)
from conadv.lab.report.charts.scatter import names_height, scatter
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import Gains, LargeBatch, equal_epochs
from conadv.lab.report.text import count, percent, points, ratio

ACCURACY = "test accuracy (%)"
Palette = Mapping[MethodKey, Colour]
_BY_SEED = "Lines through symbols: intervals of 95 % over seeds."


def scale_charts(
    scale: LargeBatch | None, gains: Sequence[Gains], everything: Sequence[Cell], palette: Palette
) -> list[Chart]:
    """Every figure that the settings have data for."""
    charts = [
        None if scale is None else _against_batch(scale, palette),
        _against_compute(gains, palette),
        _under_attack(gains, palette),
        _fit(everything, palette),
    ]
    return [chart for chart in charts if chart is not None]


def _against_batch(scale: LargeBatch, palette: Palette) -> Chart | None:
    series = []
    for reach in scale.reaches:
        cells = [cell for cell in reach.cells.values() if equal_epochs(cell)]
        if cells:
            series.append(
                Series(
                    reach.key.method,
                    reach.key.method,
                    colour_of(palette, reach.key),
                    palette[reach.key].symbol,
                    tuple((cell.batch or 0, 100 * _accuracy(cell)) for cell in cells),
                    tuple(_ends(cell, "test_accuracy") for cell in cells),
                )
            )
    if not series:
        return None
    return Chart(
        "batch",
        "Accuracy against batch size",
        "One panel for each method, the others in grey. Settings with longer or shorter training "
        f"are left out. Dotted: {100 * scale.target:.1f} %, half a point under the best at batch "
        f"{count(scale.batches[0])}. {_BY_SEED}",
        multiples(
            series,
            "images per weight update",
            ACCURACY,
            slug="batch",
            x_ticks=scale.batches,
            logarithmic=True,
            line_at=100 * scale.target,
        ),
    )


def _against_compute(gains: Sequence[Gains], palette: Palette) -> Chart | None:
    """One panel a batch: test accuracy over compute, longer ordinary training included."""
    batches: list[tuple[int, list[tuple[float, Mark]], list[tuple[float, float]]]] = []
    for at in gains:
        cells = [(1.0, at.ordinary), *((row.multiple, row.cell) for row in at.rows)]
        known = [(multiple, cell) for multiple, cell in cells if multiple]
        longer = [(m, c) for m, c in known if c is at.ordinary or _longer(c, at.ordinary)]
        line = sorted((m, 100 * _accuracy(c)) for m, c in longer)
        batches.append((at.batch, [(m, _mark(c, palette)) for m, c in known], line))
    if not batches:
        return None
    costs = [cost for _, marks, _ in batches for cost, _ in marks]
    x_span = min(costs) / 1.2, max(2.0, *costs) * 1.2
    height = max(210.0, *(names_height([m for _, m in marks]) for _, marks, _ in batches))
    panels = []
    for batch, marks, line in batches:
        y_span = span_of([end for _, mark in marks for end in mark.span])
        drawn = scatter(marks, "times the compute", ACCURACY, x_span, y_span, height, line)
        panels.append(Panel(f"Batch {count(batch)}", drawn))
    return Chart(
        "compute",
        "Accuracy against compute",
        "Compute of a run as a multiple of ordinary training's at the same batch; symbols of the "
        "same compute stand side by side. Each batch has a vertical axis of its own. Dotted: "
        f"ordinary training, for longer. {_BY_SEED}",
        tuple(panels),
    )


def _longer(cell: Cell, ordinary: Cell) -> bool:
    """Whether a setting is ordinary training, but for its length."""
    alike = cell.setting("optimizer.name") == ordinary.setting("optimizer.name")
    return cell.ordinary and alike and not equal_epochs(cell)


def _mark(cell: Cell, palette: Palette) -> Mark:
    return Mark(
        cell.key.method,
        100 * _accuracy(cell),
        _ends(cell, "test_accuracy"),
        colour_of(palette, cell.key),
        palette[cell.key].symbol,
        percent(_accuracy(cell)),
    )


def _under_attack(gains: Sequence[Gains], palette: Palette) -> Chart | None:
    """Rows of differences from ordinary training, one panel a batch."""
    panels: list[tuple[str, list[Mark]]] = []
    for at_batch in gains:
        marks = []
        for row in sorted(at_batch.rows, key=lambda row: row.multiple or 0):
            fair = row.robust_same_compute
            found, hollow = (fair, "") if fair else (row.robust, "-open")
            if found is None or (row.cell.ordinary and row.cell.length != 1):
                continue
            symbol = palette[row.cell.key].symbol.removesuffix("-open")
            marks.append(
                Mark(
                    f"{row.cell.key.method} {ratio(row.multiple)}",
                    100 * found.value,
                    _hundredfold(found.interval),
                    colour_of(palette, row.cell.key),
                    symbol + hollow,
                    points(found.value),
                )
            )
        if marks:
            panels.append((f"Batch {count(at_batch.batch)}", marks))
    return _chart(
        "attack",
        "Accuracy under attack",
        "On images that an attack has changed: points above the best ordinary training of at most "
        "as much compute at the same batch, paired by seed, from the cheapest method to the "
        "dearest; × is the compute of a run as a multiple of ordinary training. Hollow: ordinary "
        f"training never had so much, and stands there as it is. {_BY_SEED}",
        panels,
        "points above ordinary training",
        zero=True,
    )


def _fit(everything: Sequence[Cell], palette: Palette) -> Chart | None:
    batches: dict[int, list[Mark]] = {}
    for cell in everything:
        fitted = cell.mean("train_accuracy")
        if fitted is not None:
            batches.setdefault(cell.batch or 0, []).append(
                Mark(
                    cell.key.method,
                    100 * fitted,
                    _ends(cell, "train_accuracy"),
                    colour_of(palette, cell.key),
                    palette[cell.key].symbol,
                    percent(fitted),
                )
            )
    return _chart(
        "fit",
        "Finished?",
        "Accuracy on the training images at the end. Where it is under 95 % training is not "
        "finished, and part of what a batch loses there more steps would win back.",
        [(f"Batch {count(batch)}", batches[batch]) for batch in sorted(batches)],
        "training accuracy (%)",
        zero=False,
    )


def _chart(
    slug: str,
    title: str,
    note: str,
    batches: Sequence[tuple[str, Sequence[Mark]]],
    axis: str,
    *,
    zero: bool,
) -> Chart | None:
    everywhere = [mark for _, marks in batches for mark in marks]
    if not everywhere:
        return None
    span = span_of([end for mark in everywhere for end in mark.span], zero=zero)
    line_at = 0.0 if zero else None
    panels = tuple(Panel(name, dots(marks, axis, span, line_at)) for name, marks in batches)
    return Chart(slug, title, note, panels)


def _accuracy(cell: Cell) -> float:
    return cell.mean("test_accuracy") or 0.0


def _ends(cell: Cell, name: str) -> tuple[float, float] | None:
    """The interval of a mean over the seeds, in per cent."""
    values = cell.values(name)
    return _hundredfold(Paired(tuple(values)).interval) if values else None


def _hundredfold(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (100 * ends[0], 100 * ends[1])

"""The first charts of a page: accuracy against batch size and compute, and under attack."""

from collections.abc import Callable, Mapping, Sequence

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
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import Gain, Gains, LargeBatch, equal_epochs
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
        _differences(
            "compute",
            "Accuracy against compute",
            "Test accuracy above the best ordinary training of at most as much compute at the same "
            "batch, paired by seed, from the cheapest method to the dearest; × is the compute of a "
            "run as a multiple of ordinary training. Hollow: ordinary training never had so much, "
            f"and stands there as it is. {_BY_SEED}",
            gains,
            palette,
            lambda row: row.same_compute,
            lambda row: row.above,
        ),
        _differences(
            "attack",
            "Accuracy under attack",
            "The same on images that an attack has changed: above the best ordinary training of at "
            f"most as much compute; hollow: above ordinary training as it is. {_BY_SEED}",
            gains,
            palette,
            lambda row: row.robust_same_compute,
            lambda row: row.robust,
        ),
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


def _differences(
    slug: str,
    title: str,
    note: str,
    gains: Sequence[Gains],
    palette: Palette,
    fair: Callable[[Gain], Paired | None],
    plain: Callable[[Gain], Paired | None],
) -> Chart | None:
    """Rows of differences from ordinary training, one panel a batch."""
    panels: list[tuple[str, list[Mark]]] = []
    for at_batch in gains:
        marks = []
        for row in sorted(at_batch.rows, key=lambda row: row.multiple or 0):
            found, hollow = (fair(row), "") if fair(row) else (plain(row), "-open")
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
    return _chart(slug, title, note, panels, "points above ordinary training", zero=True)


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

"""Figures of a study: accuracy against batch size, compute, time and training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from conadv.lab.report.charts.curves import Chart, figure
from conadv.lab.report.charts.palette import Colour, MethodKey
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import Gains, LargeBatch, equal_epochs
from conadv.lab.report.text import count

ACCURACY = "test accuracy (%)"
Palette = Mapping[MethodKey, Colour]


def scale_charts(
    scale: LargeBatch | None, gains: Sequence[Gains], everything: Sequence[Cell], palette: Palette
) -> list[Chart]:
    """Every figure that the settings have data for."""
    charts = []
    if scale is not None:
        charts.append(_against_batch(scale, palette))
    equal = _at_equal_compute(gains, palette)
    if equal is not None:
        charts.append(equal)
    for at_batch in gains:
        if len(at_batch.rows) > 1:
            charts += _costs(at_batch, palette)
    fit = _fit(everything, palette)
    return charts if fit is None else [*charts, fit]


def _against_batch(scale: LargeBatch, palette: Palette) -> Chart:
    traces = []
    for reach in scale.reaches:
        cells = [cell for cell in reach.cells.values() if equal_epochs(cell)]
        if cells:
            traces.append(_line(palette, cells, lambda cell: cell.batch))
    drawn = figure(traces, "images per weight update", ACCURACY, log=True)
    drawn["layout"]["xaxis"] |= _batch_ticks(scale.batches)
    drawn["layout"]["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 100 * scale.target,
            "y1": 100 * scale.target,
            "line": {"dash": "dot", "width": 1.5},
        }
    ]
    return Chart(
        "batch",
        "Accuracy against batch size, at equal epochs",
        "Mean and standard deviation over seeds. Every point has seen each training image equally "
        f"often. Dotted: {100 * scale.target:.1f} %, half a point under the best at batch "
        f"{count(scale.batches[0])}.",
        drawn,
    )


def _at_equal_compute(gains: Sequence[Gains], palette: Palette) -> Chart | None:
    """Difference from ordinary training of as much compute, against batch size."""
    points: dict[MethodKey, list[tuple[int, float, float | None]]] = {}
    for at_batch in gains:
        for row in at_batch.rows:
            if (found := row.same_compute) is not None:
                interval = found.interval
                half = None if interval is None else 50 * (interval[1] - interval[0])
                place = (at_batch.batch, 100 * found.value, half)
                points.setdefault(row.cell.key, []).append(place)
    if not points:
        return None
    traces = []
    for key, line in points.items():
        colour = palette[key]
        traces.append(
            _trace(
                palette,
                key,
                colour,
                [b for b, _, _ in line],
                [y for _, y, _ in line],
                [e for _, _, e in line],
            )
        )
    drawn = figure(traces, "images per weight update", "points above ordinary", log=True)
    drawn["layout"]["xaxis"] |= _batch_ticks(sorted({b for v in points.values() for b, _, _ in v}))
    drawn["layout"]["yaxis"]["zeroline"] = True
    return Chart(
        "equal-compute",
        "At equal compute",
        "Test accuracy above the best ordinary training of at most as much compute at the same "
        "batch, by seed. Bars: intervals of 95 %.",
        drawn,
    )


def _costs(at_batch: Gains, palette: Palette) -> list[Chart]:
    cells = [at_batch.ordinary, *(row.cell for row in at_batch.rows)]
    charts = []
    measures: tuple[tuple[str, str, str, Callable[[Cell], float | None]], ...] = (
        ("compute", "compute", "compute (images forward and backward)", _compute),
        ("time", "training time", "steps times median step time (s)", _time),
    )
    for slug, words, axis, measure in measures:
        known = [cell for cell in cells if measure(cell) is not None]
        if len(known) < 2:
            continue
        longer = sorted(
            (
                cell
                for cell in known
                if cell.ordinary
                and cell.setting("optimizer.name") == at_batch.ordinary.setting("optimizer.name")
            ),
            key=lambda cell: measure(cell) or 0,
        )
        traces = [_line(palette, [cell], measure) for cell in known]
        if len(longer) > 1:
            joined = go.Scatter(
                x=[measure(cell) for cell in longer],
                y=[100 * (cell.mean("test_accuracy") or 0) for cell in longer],
                mode="lines",
                line={"width": 1.5, "dash": "dot"},
                hoverinfo="skip",
                meta={"method": list(palette).index(at_batch.ordinary.key)},
            )
            traces.insert(0, joined)
        batch = count(at_batch.batch)
        charts.append(
            Chart(
                f"{slug}-{at_batch.batch}",
                f"Accuracy against {words}, batch {batch}",
                "Mean and standard deviation over seeds; dotted: ordinary training, longer and "
                "longer." + ("" if slug == "compute" else " Measured on the machine below."),
                figure(traces, axis, ACCURACY, zero=True),
            )
        )
    return charts


def _fit(everything: Sequence[Cell], palette: Palette) -> Chart | None:
    known = [
        cell
        for cell in everything
        if cell.mean("train_loss") is not None and cell.mean("test_accuracy") is not None
    ]
    if len(known) < 2:
        return None
    sizes = sorted({cell.batch or 0 for cell in known})
    traces = []
    for cell in known:
        trace = _line(palette, [cell], lambda cell: cell.mean("train_loss"))
        trace.marker.size = 7 + 9 * sizes.index(cell.batch or 0) / max(1, len(sizes) - 1)
        traces.append(trace)
    return Chart(
        "fit",
        "Fitted, or merely unfinished?",
        "Test accuracy against the loss on training images at the end; larger symbols are larger "
        "batches. On the left training is done: what is lost there is generalisation. Further to "
        "the right more steps would help.",
        figure(traces, "training loss (nats)", ACCURACY, log=True),
    )


def _compute(cell: Cell) -> float | None:
    return cell.mean("compute")


def _time(cell: Cell) -> float | None:
    """Steps times the median time of a step, averaged over the seeds."""
    step, steps = cell.mean("step_seconds_median"), cell.mean("steps")
    return None if step is None or steps is None else step * steps


def _line(palette: Palette, cells: Sequence[Cell], x: Callable[[Cell], float | None]) -> go.Scatter:
    cells = sorted(cells, key=lambda cell: x(cell) or 0)
    spreads = [cell.spread("test_accuracy") for cell in cells]
    key = cells[0].key
    return _trace(
        palette,
        key,
        palette[key],
        [x(cell) for cell in cells],
        [100 * (cell.mean("test_accuracy") or 0) for cell in cells],
        [None if spread is None else 100 * spread for spread in spreads],
        [f"{cell.name}, {len(cell.finished)} runs" for cell in cells],
    )


def _trace(
    palette: Palette,
    key: MethodKey,
    colour: Colour,
    x: Sequence[float | None],
    y: Sequence[float],
    errors: Sequence[float | None],
    names: Sequence[str] | None = None,
) -> go.Scatter:
    return go.Scatter(
        x=[None if value is None else float(f"{value:.6g}") for value in x],
        y=[float(f"{value:.6g}") for value in y],
        error_y={
            "type": "data",
            "array": [None if e is None else float(f"{e:.4g}") for e in errors],
            "thickness": 1.4,
            "width": 4,
        },
        name=key.method,
        text=list(names or [key.method] * len(x)),
        mode="lines+markers" if len(x) > 1 else "markers",
        line={"color": colour.light, "width": 2},
        marker={"symbol": colour.symbol, "size": 10},
        hovertemplate="%{text}<br>%{y:.4~g} at %{x:.4~g}<extra></extra>",
        meta={"method": list(palette).index(key), "toggle": True},
    )


def _batch_ticks(batches: Sequence[int]) -> dict[str, Any]:
    return {"tickmode": "array", "tickvals": list(batches), "ticktext": [count(b) for b in batches]}

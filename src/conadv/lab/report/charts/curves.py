"""Training and validation curves as plotly figures; the page's script colours and resizes them."""

import bisect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from conadv.lab.report.charts.palette import Colour, MethodKey, dashes
from conadv.lab.report.runs import Run
from conadv.lab.report.study.cells import Cell, baseline, method_key, relative
from conadv.lab.report.text import amount, count, ratio, seconds

POINTS = 150
"""Most points of one curve: steps beyond are averaged in groups."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes:
        slug: Its id on the page.
        title: What it shows.
        note: A sentence on how it was made.
        figure: Data and layout, ready for JSON. Each trace's ``meta`` holds the number of its
            ``method`` (for the colour), of its ``run`` and its ``x`` on every axis of the page.
    """

    slug: str
    title: str
    note: str
    figure: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A horizontal axis that the reader can choose."""

    slug: str
    button: str
    title: str


AXES = (
    Axis("epoch", "Epochs", "passes over the training images"),
    Axis("compute", "Compute", "compute (images forward and backward)"),
    Axis("seconds", "Time", "training time (s)"),
)


@dataclass(frozen=True)
class _Curve:
    slug: str
    title: str
    unit: str
    note: str
    lines: Callable[[Run], Sequence[Line]]
    keys: tuple[str, ...]
    scale: float


_CURVES = (
    _Curve(
        "val-accuracy",
        "Validation accuracy",
        "accuracy (%)",
        "On training images held out, without an attack.",
        lambda run: run.evaluations,
        ("val_accuracy",),
        100,
    ),
    _Curve(
        "train-loss",
        "Training loss",
        "cross-entropy (nats)",
        "On the clean images of the step, averaged over neighbouring steps.",
        lambda run: run.train,
        ("clean_loss", "loss"),
        1,
    ),
    _Curve(
        "val-loss",
        "Validation loss",
        "cross-entropy (nats)",
        "On training images held out, without an attack.",
        lambda run: run.evaluations,
        ("val_loss",),
        1,
    ),
    _Curve(
        "train-accuracy",
        "Training accuracy",
        "accuracy (%)",
        "On the clean images of the step, averaged over neighbouring steps.",
        lambda run: run.train,
        ("accuracy",),
        100,
    ),
)


def curves(runs: Sequence[Run], palette: Mapping[MethodKey, Colour]) -> list[Chart]:
    """Every curve that at least one run has data for."""
    styles = dashes(run.batch for run in runs)
    order = list(palette)
    charts = []
    for curve in _CURVES:
        traces = []
        for i, run in enumerate(runs):
            key = method_key(run)
            trace = _trace(curve, run, palette[key], styles[run.batch])
            if trace is not None:
                trace.meta["run"], trace.meta["method"] = i, order.index(key)
                traces.append(trace)
        if traces:
            charts.append(
                Chart(
                    curve.slug,
                    curve.title,
                    curve.note,
                    figure(traces, AXES[0].title, curve.unit, zero=True, unified=True),
                )
            )
    return charts


def shared_axes(charts: Sequence[Chart]) -> list[Axis]:
    """The horizontal axes that every trace of every chart has."""
    traces = [trace for chart in charts for trace in chart.figure["data"]]
    return [axis for axis in AXES if all(axis.slug in trace["meta"]["x"] for trace in traces)]


def _trace(curve: _Curve, run: Run, colour: Colour, dash: str) -> go.Scatter | None:
    samples = [
        (line, value)
        for line in curve.lines(run)
        if (value := _value(line, curve.keys)) is not None
    ]
    if not samples:
        return None
    x = {axis.slug: _positions(axis, run, [line for line, _ in samples]) for axis in AXES}
    known = {slug: values for slug, values in x.items() if values is not None}
    if "epoch" not in known:
        return None
    groups = _groups(len(samples))
    known = {slug: [_mean(values, group) for group in groups] for slug, values in known.items()}
    y = [_mean([curve.scale * value for _, value in samples], group) for group in groups]
    few = len(y) <= 40
    return go.Scatter(
        x=known["epoch"],
        y=y,
        name=label(run),
        mode="lines+markers" if few else "lines",
        line={"color": colour.light, "dash": dash, "width": 2.2},
        marker={"symbol": colour.symbol, "size": 7},
        hovertemplate="%{y:.4~g}",
        meta={"x": known},
    )


def label(run: Run) -> str:
    """What a legend calls a run: the method and the batch size."""
    return run.method if run.batch is None else f"{run.method}, batch {count(run.batch)}"


def _value(line: Line, keys: tuple[str, ...]) -> float | None:
    for key in keys:
        value = line.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def _positions(axis: Axis, run: Run, lines: Sequence[Line]) -> list[float] | None:
    """Where lines lie on an axis; None if one of them cannot be placed."""
    own = [_value(line, (axis.slug,)) for line in lines]
    if axis.slug != "seconds" and all(value is not None for value in own):
        return [value for value in own if value is not None]
    if axis.slug == "epoch":
        return None
    steps = [_value(line, ("step",)) for line in lines]
    table = _elapsed(run) if axis.slug == "seconds" else _accumulated(run)
    if len(table) < 2 or any(step is None for step in steps):
        return None
    return [_interpolate(table, step) for step in steps if step is not None]


def _accumulated(run: Run) -> list[tuple[float, float]]:
    pairs = [(_value(line, ("step",)), _value(line, ("compute",))) for line in run.train]
    known = [(step, value) for step, value in pairs if step is not None and value is not None]
    return [(0.0, 0.0), *sorted(known)]


def _elapsed(run: Run) -> list[tuple[float, float]]:
    """Seconds of training, evaluations left out, up to each step: a running sum of step times."""
    table, total = [(0.0, 0.0)], 0.0
    for line in run.timing:
        step, seconds = _value(line, ("step",)), _value(line, ("seconds",))
        if step is not None and seconds is not None and step > table[-1][0]:
            total += seconds
            table.append((step, total))
    return table


def _interpolate(table: Sequence[tuple[float, float]], step: float) -> float:
    after = bisect.bisect_left(table, (step, -math.inf))
    if after >= len(table):
        return table[-1][1]
    if after == 0 or table[after][0] == step:
        return table[after][1]
    (x0, y0), (x1, y1) = table[after - 1], table[after]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def _groups(n: int) -> list[range]:
    size = math.ceil(n / POINTS)
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _mean(values: Sequence[float], group: range) -> float:
    return float(f"{sum(values[i] for i in group) / len(group):.6g}")


def figure(
    traces: list[go.Scatter],
    x: str,
    y: str,
    *,
    log: bool = False,
    zero: bool = False,
    unified: bool = False,
) -> dict[str, Any]:
    """Data and layout of a plain figure, as JSON has them.

    Args:
        traces: Lines and points.
        x: Title of the axis.
        y: Likewise.
        log: Whether x is logarithmic.
        zero: Whether x begins at 0.
        unified: Whether the pointer shows all values at an x, and not one point.
    """
    drawn = go.Figure(traces)
    fixed = {"fixedrange": True, "automargin": True, "zeroline": False, "ticks": ""}
    drawn.update_layout(
        template=go.layout.Template(),
        showlegend=False,
        hovermode="x unified" if unified else "closest",
        dragmode=False,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        height=300,
        xaxis={
            **fixed,
            "title": {"text": x},
            **({"type": "log", "dtick": "D2"} if log else {}),
            **({"rangemode": "tozero"} if zero else {}),
            **({"nticks": 6} if unified else {}),
        },
        yaxis={**fixed, "title": {"text": y}, "nticks": 6},
    )
    plain: dict[str, Any] = json.loads(drawn.to_json())
    return plain


_MEASURES = (
    ("Compute", "compute", amount, "forward and backward passes of one image, attacks included"),
    ("Step time", "step_seconds_median", seconds, "median over the steps, evaluation left out"),
)


@dataclass(frozen=True)
class Bar:
    """One bar: a method's cost as a share of the longest bar, in per cent."""

    cell: Cell
    width: float
    value: str
    absolute: str


@dataclass(frozen=True)
class BarGroup:
    """All bars of one measure at one batch size; ``one`` is where 1× lies, in per cent."""

    title: str
    note: str
    one: float
    bars: tuple[Bar, ...]


def cost_bars(everything: Sequence[Cell]) -> list[BarGroup]:
    """Bars for every batch size at which something stands beside ordinary training."""
    groups = []
    for reference in everything:
        if baseline(reference, everything) is not reference:
            continue
        peers = [cell for cell in everything if baseline(cell, everything) is reference]
        for title, name, write, note in _MEASURES:
            known = [
                (cell, multiple)
                for cell in peers
                if (multiple := relative(cell, everything, name)) is not None
            ]
            if len(known) < 2:
                continue
            longest = max(multiple for _, multiple in known)
            bars = tuple(
                Bar(cell, 100 * multiple / longest, ratio(multiple), write(cell.mean(name)))
                for cell, multiple in known
            )
            groups.append(
                BarGroup(f"{title}, batch {count(reference.batch)}", note, 100 / longest, bars)
            )
    return groups

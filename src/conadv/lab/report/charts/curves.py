"""Training and validation curves, over each of the axes that a reader can choose."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.report.charts.palette import Colour, MethodKey, colour_of, dashes
from conadv.lab.report.charts.panels import Chart, Series, multiples
from conadv.lab.report.runs import Run
from conadv.lab.report.study.cells import Cell, baseline, method_key, relative
from conadv.lab.report.text import amount, count, ratio, seconds

POINTS = 100
"""Most points of one curve: steps beyond are averaged in groups."""

Line = Mapping[str, Any]


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
    drawn = [(curve, found) for curve in _CURVES if (found := _lines(curve, runs))]
    axes = shared_axes(runs)
    return [
        Chart(
            curve.slug,
            curve.title,
            curve.note,
            (),
            tuple(
                (
                    axis.slug,
                    multiples(
                        _series(curve, found, axis, palette),
                        axis.title,
                        curve.unit,
                        slug=f"{curve.slug}-{axis.slug}",
                        zero=True,
                    ),
                )
                for axis in axes
            ),
        )
        for curve, found in drawn
    ]


def shared_axes(runs: Sequence[Run]) -> list[Axis]:
    """The horizontal axes on which every run has a place for all of its lines."""
    drawn = [
        (run, [line for line, _ in samples])
        for curve in _CURVES
        for run, samples in _lines(curve, runs)
    ]
    return [axis for axis in AXES if all(_positions(axis, *one) is not None for one in drawn)]


def _lines(curve: _Curve, runs: Sequence[Run]) -> list[tuple[Run, list[tuple[Line, float]]]]:
    """The samples of each run that has some, and a number of epochs to each."""
    found = []
    for run in runs:
        samples = [
            (line, value)
            for line in curve.lines(run)
            if (value := _value(line, curve.keys)) is not None
        ]
        if samples and _positions(AXES[0], run, [line for line, _ in samples]) is not None:
            found.append((run, samples))
    return found


def _series(
    curve: _Curve,
    found: Sequence[tuple[Run, list[tuple[Line, float]]]],
    axis: Axis,
    palette: Mapping[MethodKey, Colour],
) -> list[Series]:
    styles = dashes(run.batch for run, _ in found)
    series = []
    for run, samples in found:
        key = method_key(run)
        xs = _positions(axis, run, [line for line, _ in samples]) or []
        ys = [curve.scale * value for _, value in samples]
        points = tuple((_mean(xs, group), _mean(ys, group)) for group in _groups(len(ys)))
        series.append(
            Series(
                key.method,
                f"batch {count(run.batch)}",
                colour_of(palette, key),
                palette[key].symbol if len(points) == 1 else "",
                points,
                dash=styles[run.batch],
            )
        )
    return series


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
    import numpy as np

    known, values = zip(*table, strict=True)
    return [float(np.interp(step, known, values)) for step in steps if step is not None]


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


def _groups(n: int) -> list[range]:
    size = math.ceil(n / POINTS)
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _mean(values: Sequence[float], group: range) -> float:
    return float(f"{sum(values[i] for i in group) / len(group):.6g}")


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

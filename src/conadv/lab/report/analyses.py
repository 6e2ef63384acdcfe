"""What `conadv analyse` found in a set of runs, from ``analysis.json``: a table and charts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.report.charts.palette import MethodKey, colour_of
from conadv.lab.report.charts.panels import Chart, Series, multiples
from conadv.lab.report.charts.scale import Palette
from conadv.lab.report.runs import Run, finite
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.text import count, figures, percent, points


@dataclass(frozen=True)
class AnalysisTable:
    """Figures per setting; columns that nobody has are left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, tuple[str, ...]], ...]
    note: str


def analysis_table(everything: Sequence[Cell]) -> AnalysisTable | None:
    """Means over the analysed runs of every setting; None if no run has been analysed."""
    radius = _common_radius(everything)
    measures: list[tuple[str, Callable[[Run], float | None], Callable[[float | None], str]]] = [
        ("Generalisation gap", lambda run: _at(run, "gap", "accuracy_gap"), points),
        ("Largest Hessian eigenvalue", _eigenvalue, figures),
        ("Hessian trace", lambda run: _at(run, "sharpness", "hessian", "trace"), figures),
        (
            f"SAM-sharpness, ρ = {radius or 0:g}",
            lambda run: None if radius is None else _sam(run, radius),
            figures,
        ),
        ("Corruptions, mean", lambda run: _at(run, "corruptions", "mean"), percent),
        ("Old gradients, own part, lowest cosine", _lowest_own, figures),
    ]
    analysed = [cell for cell in everything if any(run.analyses for run in cell.runs)]
    if not analysed:
        return None
    columns: list[str] = []
    written: list[list[str]] = [[] for _ in analysed]
    for title, measure, write in measures:
        means = [_mean(cell, measure) for cell in analysed]
        if any(value is not None for value in means):
            columns.append(title)
            for texts, value in zip(written, means, strict=True):
                texts.append(write(value))
    if not columns:
        return None
    numbers = sorted({sum(bool(run.analyses) for run in cell.runs) for cell in analysed})
    runs = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
    return AnalysisTable(
        tuple(columns),
        tuple((cell, tuple(texts)) for cell, texts in zip(analysed, written, strict=True)),
        f"By conadv analyse, mean of {runs} run{'' if runs == '1' else 's'} per setting, through "
        "the branch that is evaluated. Gap: training minus test accuracy, in points. Where batch "
        "norm makes the scale of weights arbitrary, compare sharpness with care." + _told(analysed),
    )


def _told(analysed: Sequence[Cell]) -> str:
    """What old gradients say about copies of weights, in the analysis's own words."""
    found = [
        f" {cell.name}: {verdict}."
        for cell in analysed
        for verdict in dict.fromkeys(
            run.analyses.get("gradients", {}).get("verdict") for run in cell.runs
        )
        if isinstance(verdict, str)
    ]
    return "".join(found)


def analysis_charts(everything: Sequence[Cell], palette: Palette) -> list[Chart]:
    """Accuracy against the attack's radius, and loss along filter-normalised lines.

    Of every method the largest batch is drawn, so that lines stay apart.
    """
    drawn: dict[MethodKey, Cell] = {}
    for cell in sorted(everything, key=lambda cell: cell.batch or 0):
        if any(run.analyses for run in cell.runs):
            drawn[cell.key] = cell
    charts = []
    for slug, title, note, axis, unit, curve in (
        (
            "robustness",
            "Accuracy under attack",
            "PGD on test images, through the branch that is evaluated; of every method the "
            "largest batch.",
            "radius (255ths of the pixel range)",
            "accuracy (%)",
            _robustness,
        ),
        (
            "landscape",
            "Loss around the weights",
            "Mean of random filter-normalised directions; 1 moves every filter by its own length. "
            "Of every method the largest batch.",
            "distance",
            "training loss (nats)",
            _landscape,
        ),
    ):
        series = []
        for key, cell in drawn.items():
            lines = [line for run in cell.runs if (line := curve(run)) is not None]
            lines = [line for line in lines if line[0] == lines[0][0]]
            if not lines:
                continue
            heights = [statistics.fmean(ys) for ys in zip(*(ys for _, ys in lines), strict=True)]
            series.append(
                Series(
                    f"{key.method}, batch {count(cell.batch)}",
                    key.method,
                    colour_of(palette, key),
                    palette[key].symbol if len(heights) < 12 else "",
                    tuple(zip(lines[0][0], heights, strict=True)),
                )
            )
        if series:
            charts.append(Chart(slug, title, note, multiples(series, axis, unit, slug=slug)))
    return charts


def _robustness(run: Run) -> tuple[list[float], list[float]] | None:
    wanted = str(run.setting("evaluation.branch") or "clean")
    pgd = [curve for curve in _rows(run, "robustness", "curves") if curve.get("attack") == "pgd"]
    for curve in sorted(pgd, key=lambda curve: curve.get("branch") != wanted):
        xs = _numbers(curve.get("epsilons"))
        ys = _numbers(curve.get("accuracies"))
        if xs and len(xs) == len(ys):
            clean = finite(curve.get("clean_accuracy"))
            if clean is not None and xs[0] > 0:
                xs, ys = [0.0, *xs], [clean, *ys]
            return [float(f"{255 * x:.4g}") for x in xs], [100 * y for y in ys]
    return None


def _landscape(run: Run) -> tuple[list[float], list[float]] | None:
    known = _rows(run, "landscape", "lines")
    xs = _numbers(known[0].get("positions")) if known else []
    ys = [_numbers(line.get("losses")) for line in known]
    ys = [values for values in ys if len(values) == len(xs)]
    if not xs or not ys:
        return None
    return xs, [statistics.fmean(values) for values in zip(*ys, strict=True)]


def _numbers(values: Any) -> list[float]:
    """A list of finite numbers; empty if one is not."""
    if not isinstance(values, list):
        return []
    numbers = [number for value in values if (number := finite(value)) is not None]
    return numbers if len(numbers) == len(values) else []


def _found(run: Run, *path: str) -> Any:
    """What an analysis wrote at a place; None where there is no such place."""
    value: Any = run.analyses
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _rows(run: Run, *path: str) -> list[Mapping[str, Any]]:
    listed = _found(run, *path)
    return [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []


def _at(run: Run, *path: str) -> float | None:
    return finite(_found(run, *path))


def _eigenvalue(run: Run) -> float | None:
    return max(_numbers(_found(run, "sharpness", "hessian", "eigenvalues")), default=None)


def _lowest_own(run: Run) -> float | None:
    rows = _rows(run, "gradients", "steps")
    return min((own for row in rows if (own := finite(row.get("own"))) is not None), default=None)


def _sam_points(run: Run) -> dict[float, float]:
    pairs = [
        (finite(point.get("radius")), finite(point.get("sharpness")))
        for point in _rows(run, "sharpness", "sam", "points")
    ]
    return {r: value for r, value in pairs if r is not None and value is not None}


def _sam(run: Run, radius: float) -> float | None:
    return _sam_points(run).get(radius)


def _common_radius(everything: Sequence[Cell]) -> float | None:
    """The middle one of the radii that every analysed run has."""
    sets = [set(found) for cell in everything for run in cell.runs if (found := _sam_points(run))]
    common = sorted(set.intersection(*sets)) if sets else []
    return common[len(common) // 2] if common else None


def _mean(cell: Cell, measure: Callable[[Run], float | None]) -> float | None:
    values = [value for run in cell.runs if (value := measure(run)) is not None]
    return statistics.fmean(values) if values else None

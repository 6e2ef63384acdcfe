"""Everything that a report says, worked out once for its page, its Markdown and its table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conadv._words import import_named
from conadv.errors import doing
from conadv.lab.report.analyses import AnalysisTable, analysis_charts, analysis_table
from conadv.lab.report.charts.palette import Colour, MethodKey, colours
from conadv.lab.report.charts.panels import Chart
from conadv.lab.report.charts.scale import scale_charts
from conadv.lab.report.findings import Findings
from conadv.lab.report.runs import Run
from conadv.lab.report.study.cells import Cell, cells
from conadv.lab.report.study.findings import findings
from conadv.lab.report.study.large_batch import Gains, LargeBatch, gains, large_batch
from conadv.lab.report.study.runs import Material, StudyFacts
from conadv.lab.report.study.tuning import Tuned, tuning


@dataclass(frozen=True)
class Content:
    """The contents of a report.

    Attributes:
        title: Small line above the headline.
        lead: Introduction, or empty.
        runs: Every run.
        studies: The studies among what was given.
        cells: Runs of one setting together.
        palette: The colour of every method.
        findings: The words.
        scale: How far every method goes; None where that is no question.
        gains: Every method at each batch, likewise.
        charts: Figures of these.
        own_charts: Figures of one's own.
        analyses: Sharpness and the like, or None.
        analysis_charts: Figures of these.
        tuned: What studies tuned.
        imagenet: Scores on ImageNet's test sets.
        pictures: Whether images of the runs are shown.
    """

    title: str
    lead: str
    runs: tuple[Run, ...]
    studies: tuple[StudyFacts, ...]
    cells: tuple[Cell, ...]
    palette: Mapping[MethodKey, Colour]
    findings: Findings
    scale: LargeBatch | None
    gains: tuple[Gains, ...]
    charts: tuple[Chart, ...]
    own_charts: tuple[Chart, ...]
    analyses: AnalysisTable | None
    analysis_charts: tuple[Chart, ...]
    tuned: tuple[Tuned, ...]
    imagenet: tuple[Mapping[str, Any], ...]
    pictures: bool = True


def content(
    material: Material,
    *,
    title: str | None = None,
    lead: str = "",
    pictures: bool = True,
    charts: Iterable[str] = (),
) -> Content:
    """Work out a report.

    Args:
        material: Runs and studies.
        title: Small line above the headline; None takes data set and network.
        lead: Introduction; empty takes the description of the study.
        pictures: Show images of the runs; false for data that may not be passed on.
        charts: Functions of one's own, each ``module:function``. They are given the cells and the
            colour of each method, and return a `Chart` or None.

    Raises:
        ValueError: There are no runs, or no such function.
    """
    runs, studies = material.runs, material.studies
    if not runs:
        raise ValueError("There are no runs to report on: give at least one.")
    everything = tuple(cells(runs))
    palette = colours((cell.key, cell.batch) for cell in everything)
    scale = _scale(everything, studies)
    every_gain = tuple(gains(everything))
    found = every_gain if scale is not None else ()
    return Content(
        title=title or _title(runs, studies),
        lead=lead or " ".join(study.description for study in studies),
        runs=runs,
        studies=studies,
        cells=everything,
        palette=palette,
        findings=findings(everything, scale, found, studies),
        scale=scale,
        gains=found,
        charts=tuple(scale_charts(scale, every_gain, everything, palette)),
        own_charts=tuple(filter(None, (_own_chart(c, everything, palette) for c in charts))),
        analyses=analysis_table(everything),
        analysis_charts=tuple(analysis_charts(everything, palette)),
        tuned=tuple(tuning(studies)),
        imagenet=material.imagenet,
        pictures=pictures,
    )


def _own_chart(
    name: str, everything: tuple[Cell, ...], palette: Mapping[MethodKey, Colour]
) -> Chart | None:
    with doing(f"drawing the chart {name}"):
        drawn: Chart | None = import_named(name)(everything, palette)
    return drawn


def _scale(everything: tuple[Cell, ...], studies: tuple[StudyFacts, ...]) -> LargeBatch | None:
    """Batch sizes are a question of their own in a study, with seeds, or with three of them."""
    scale = large_batch(everything)
    if scale is None or len(scale.reaches) < 2:
        return None
    seeds = any(len(cell.runs) > 1 for cell in everything)
    return scale if studies or seeds or len(scale.batches) > 2 else None


def _title(runs: Iterable[Run], studies: Iterable[StudyFacts]) -> str:
    runs = list(runs)
    places = list(dict.fromkeys(f"{run.dataset}, {run.model}" for run in runs))
    place = places[0] if len(places) == 1 else f"{len(runs)} runs"
    names = [study.name for study in studies]
    return f"{', '.join(names)}: {place}" if names else place

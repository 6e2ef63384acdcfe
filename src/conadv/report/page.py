"""The page: everything about a set of runs in one HTML file that loads nothing."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from conadv.errors import RunFolderError
from conadv.report.cells import cells, method_key
from conadv.report.charts import curves, label, shared_axes
from conadv.report.costs import cost_bars
from conadv.report.findings import attack_note, findings
from conadv.report.palette import Colour, MethodKey, colours, dashes
from conadv.report.pictures import Triple, strongest, triples
from conadv.report.runs import Run, find_runs
from conadv.report.settings import Facts, differing, facts, machine
from conadv.report.tables import COLUMNS, rows

_CONTROLS = ("vanilla",)


@dataclass(frozen=True)
class Strip:
    """The pictures of one run."""

    run: Run
    method: int
    caption: str
    images: tuple[Triple, ...]


@dataclass(frozen=True)
class RunView:
    """One run in the list at the end: how it is drawn, made and how to make it again."""

    run: Run
    label: str
    method: int
    dash: str
    settings: tuple[tuple[str, str], ...]
    command: str
    facts: tuple[Facts, ...]


def write_report(
    paths: Iterable[Path | str], out: Path | str, *, title: str | None = None, lead: str = ""
) -> Path:
    """Read run folders and write the page.

    Args:
        paths: Run folders, or folders of run folders.
        out: The HTML file; its folder is made if it is missing.
        title: Small line above the headline; None takes data set and network.
        lead: A paragraph of introduction under the headline.

    Returns:
        ``out`` as a path.

    Raises:
        RunFolderError: A path is no run folder, or the page cannot be written.
    """
    out = Path(out)
    page = render_report(find_runs(paths), title=title, lead=lead)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"cannot write the report {out}: {error.strerror}. Give a file you can write to."
        ) from error
    return out


def render_report(runs: Sequence[Run], *, title: str | None = None, lead: str = "") -> str:
    """The page as text: about 5 MB, nearly all of it the plotting library.

    Args:
        runs: What it shows, in this order.
        title: Small line above the headline; None takes data set and network.
        lead: A paragraph of introduction under the headline.

    Raises:
        ValueError: There are no runs.
    """
    if not runs:
        raise ValueError("There are no runs to report on: give at least one.")
    everything = cells(runs)
    palette = colours((cell.key, cell.batch) for cell in everything)
    charts = curves(runs, palette)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title or _title(runs),
            lead=lead,
            findings=findings(everything),
            columns=COLUMNS,
            rows=rows(everything),
            charts=charts,
            axes=shared_axes(charts) if charts else [],
            costs=cost_bars(everything),
            strips=_strips(runs, palette),
            runs=_views(runs, palette),
            machines=list(dict.fromkeys(filter(None, map(machine, runs)))),
            attack=attack_note(everything[0]).removeprefix(", "),
            number=list(palette).index,
            colours=list(palette.values()),
            library=get_plotlyjs() if charts else "",
            script=_template_text("report.js"),
            style=_template_text("report.css"),
        )
    )


def _title(runs: Sequence[Run]) -> str:
    places = list(dict.fromkeys(f"{run.dataset}, {run.model}" for run in runs))
    return places[0] if len(places) == 1 else f"{len(runs)} runs"


def _strips(runs: Sequence[Run], palette: Mapping[MethodKey, Colour]) -> list[Strip]:
    """Pictures of the adversarial methods, one run each; of ordinary training if that is all."""
    order = list(palette)
    shown: dict[MethodKey, Strip] = {}
    for run in runs:
        if run.pictures is None or method_key(run) in shown:
            continue
        key, most = method_key(run), strongest(run.pictures)
        scale = f"; shown {127 / most:.0f} times as strong around mid-grey" if most else ""
        caption = f"The strongest change of a pixel is {most:.3g} of 255 grey levels{scale}."
        shown[key] = Strip(run, order.index(key), caption, tuple(triples(run.pictures)))
    adversarial = [strip for key, strip in shown.items() if key.schedule not in _CONTROLS]
    return adversarial or list(shown.values())


def _views(runs: Sequence[Run], palette: Mapping[MethodKey, Colour]) -> list[RunView]:
    order, styles = list(palette), dashes(run.batch for run in runs)
    different = differing(runs)
    return [
        RunView(
            run=run,
            label=label(run),
            method=order.index(method_key(run)),
            dash=styles[run.batch],
            settings=different[i],
            command=_command(run),
            facts=tuple(facts(run)),
        )
        for i, run in enumerate(runs)
    ]


def _command(run: Run) -> str:
    """What remakes a run: its resolved recipe, into a new folder."""
    recipe, again = run.folder / "recipe.yaml", run.folder.with_name(f"{run.name}-again")
    return shlex.join(["conadv", "train", str(recipe), "--out", str(again)])


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template_text(name: str) -> str:
    return (files("conadv.report") / "templates" / name).read_text(encoding="utf-8")

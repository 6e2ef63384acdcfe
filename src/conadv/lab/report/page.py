"""The page: everything about a set of runs in one HTML file that loads nothing."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from conadv._files import write_text
from conadv.errors import RunFolderError
from conadv.lab.report.charts.curves import cost_bars, curves, shared_axes
from conadv.lab.report.content import Content, content
from conadv.lab.report.export import markdown, table
from conadv.lab.report.findings import attack_note
from conadv.lab.report.imagenet import imagenet_html
from conadv.lab.report.run_views import drawn_runs, setting_views, strips
from conadv.lab.report.runs import Run
from conadv.lab.report.settings import machine
from conadv.lab.report.study.runs import Material, gather
from conadv.lab.report.study.scale_tables import (
    gains_columns,
    gains_row,
    reach_columns,
    reach_row,
)
from conadv.lab.report.study.wording import judged_columns, judged_row
from conadv.lab.report.tables import HELD_OUT, accuracies, columns, rows
from conadv.lab.report.template import render


def write_report(
    paths: Iterable[Path | str],
    out: Path | str,
    *,
    title: str | None = None,
    lead: str = "",
    markdown_out: Path | str | None = None,
    table_out: Path | str | None = None,
    charts: Iterable[str] = (),
) -> Path:
    """Read runs and studies, and write the page.

    Args:
        paths: Run folders, study folders, or folders of them.
        out: The HTML file; its folder is made if it is missing.
        title: Small line above the headline; None takes data set and network.
        lead: A paragraph of introduction under the headline; empty takes a study's description.
        markdown_out: Also write the tables as Markdown.
        table_out: Also write one row per run as comma-separated values.
        charts: Functions of one's own, each ``module:function``; see `content`.

    Returns:
        ``out`` as a path.

    Raises:
        RunFolderError: A path is neither run nor study, or a file cannot be written.
    """
    material = content(gather(paths), title=title, lead=lead, charts=charts)
    return write_content(material, out, markdown_out=markdown_out, table_out=table_out)


def write_content(
    material: Content,
    out: Path | str,
    *,
    markdown_out: Path | str | None = None,
    table_out: Path | str | None = None,
) -> Path:
    """Write what was worked out: the page, and on request Markdown and a table.

    Raises:
        RunFolderError: A file cannot be written.
    """
    _write(Path(out), page(material))
    if markdown_out is not None:
        _write(Path(markdown_out), markdown(material))
    if table_out is not None:
        _write(Path(table_out), table(material.runs))
    return Path(out)


def render_report(runs: Sequence[Run], *, title: str | None = None, lead: str = "") -> str:
    """The page of some runs as text.

    Args:
        runs: What it shows, in this order.
        title: Small line above the headline; None takes data set and network.
        lead: A paragraph of introduction under the headline.

    Raises:
        ValueError: There are no runs.
    """
    return page(content(Material(tuple(runs)), title=title, lead=lead))


def page(material: Content) -> str:
    """The page as text: drawings are in it, and it has no script."""
    palette = material.palette
    drawn = drawn_runs(material.runs)
    first = [chart for chart in material.charts if chart.slug != "fit"]
    scale = material.scale
    values = vars(material) | {
        "columns": columns(material.cells),
        "held_out": accuracies(material.cells) is HELD_OUT,
        "rows": rows(material.cells),
        "reach_columns": reach_columns(scale) if scale else (),
        "reach_row": reach_row,
        "judged_columns": judged_columns(),
        "judged_row": judged_row,
        "gains_columns": gains_columns(),
        "gains_row": gains_row,
        "first_charts": first,
        "more_charts": [chart for chart in material.charts if chart not in first],
        "imagenet": imagenet_html(material.imagenet) if material.imagenet else "",
        "charts": curves(drawn, palette),
        "drawn": len(drawn),
        "axes": shared_axes(drawn),
        "costs": cost_bars(material.cells),
        "strips": strips(material.runs, palette) if material.pictures else [],
        "settings": setting_views(material.cells, palette),
        "machines": list(dict.fromkeys(filter(None, map(machine, material.runs)))),
        "attack": attack_note(material.cells[0]).removeprefix(", "),
        "number": list(palette).index,
        "colours": list(palette.values()),
    }
    return render("report.html.jinja", **values)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the report {path}: {error.strerror}. Give a file you can write to."
        ) from error

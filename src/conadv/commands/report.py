"""``conadv report``: runs and studies as one page."""

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._show import say


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="STUDY|RUN...",
            help="Study folders, run folders, folders of them; JSON of evaluate --test-set.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page.", show_default="report.html in the first folder"),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables as Markdown.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write one row per run.")] = None,
    title: Annotated[
        str | None, typer.Option(help="Above the headline.", show_default="study, data, network")
    ] = None,
    chart: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Also show a chart of your own."),
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Show no images: data that may not be passed on.")
    ] = False,
) -> None:
    """Make one self-contained HTML page of studies and runs.

    How far each method goes in batch size, at equal epochs and at equal compute; curves, costs,
    sharpness, robustness, pictures, and the command that remakes every run. It loads nothing and
    works offline. What is not finished is marked and left out of comparisons.
    """
    from conadv.errors import doing
    from conadv.lab.report import gather
    from conadv.lab.report.content import content
    from conadv.lab.report.page import write_content

    first = paths[0] if paths[0].is_dir() else paths[0].parent
    with doing(f"reporting on {', '.join(map(str, paths))}"):
        material = content(gather(paths), title=title, pictures=not no_pictures, charts=chart or ())
        page = write_content(
            material, out or first / "report.html", markdown_out=markdown, table_out=csv
        )
    say(material.findings.headline)
    for path in (page, markdown, csv):
        if path is not None:
            say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")

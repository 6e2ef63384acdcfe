"""``conadv models``: which networks there are, and which go through conadv whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conadv.commands._show import table

if TYPE_CHECKING:
    from conadv.lab.bench.model_check import CheckedModel
    from conadv.lab.bench.model_checks import Results, Target

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _models() -> None:
    """List the networks that a recipe can name, or check that they can be trained."""


@app.command("list")
def list_models(
    part: Annotated[
        str, typer.Argument(metavar="[FILTER]", help="Part of the name.", show_default="all")
    ] = "",
    norms: Annotated[
        bool,
        typer.Option(
            "--norms",
            help="Also say how each normalises: it is made for that, all of them in some minutes.",
        ),
    ] = False,
) -> None:
    """List names for model.name."""
    from conadv.trainer.models.names import model_names

    names = model_names(part)
    if not names:
        typer.echo(f"No network has {part!r} in its name. All names: conadv models list")
        raise typer.Exit(1)
    if not norms:
        for name in names:
            typer.echo(name)
        return
    from conadv.trainer.models.zoo import list_normalisations

    width = max(map(len, names))
    for name, kinds in list_normalisations(names):  # line by line: there may be a thousand
        typer.echo(f"{name:<{width}}  {kinds}")


@app.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Networks.", show_default="the package's list"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width in pixels.", show_default="smallest known"),
    ] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds per network.")] = 120.0,
    json: Annotated[
        Path | None,
        typer.Option(help="Write rows and environment here; rows that it has are not made again."),
    ] = None,
    again: Annotated[bool, typer.Option(help="Make failed rows of that file again.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table of all rows here, as Markdown.")
    ] = None,
) -> None:
    """Split, train two rounds, export and compare: does a network go through conadv whole?

    Without names: those that come with the package, which takes from twenty minutes to an hour.
    """
    from conadv.trainer.models.names import check_library

    for name in names or ():
        check_library(name)
    from dataclasses import replace
    from importlib.metadata import version

    from conadv._files import write_text
    from conadv.lab.bench.model_checks import Results, listed, markdown_table, summary, targets
    from conadv.trainer.run.environment import environment

    wanted = targets(names) if names else listed()
    if size is not None:
        wanted = [replace(target, image_size=size) for target in wanted]
    results = Results(environment() | {"torchvision": version("torchvision")}, json)
    try:
        _check_all(results.missing(wanted, failed_too=again), results, time_limit)
    except KeyboardInterrupt:
        resume = f"the same command continues from {json}" if json else "--json would keep the rows"
        typer.echo(f"interrupted after {len(results.rows)} networks; {resume}", err=True)
        raise typer.Exit(130) from None
    rows = [results.rows[target.name] for target in wanted]
    failed = [row for row in rows if not row["works"]]
    if failed or len(rows) <= 20:
        table([_shown(row) for row in (rows if len(rows) <= 20 else failed)])
    typer.echo(summary(rows))
    if json is not None:
        typer.echo(f"written: {json}")
    if markdown is not None:
        write_text(markdown, markdown_table(rows))
        typer.echo(f"written: {markdown}")
    if failed:
        raise typer.Exit(1)


def _check_all(wanted: Sequence[Target], results: Results, time_limit: float) -> None:
    """Check them, with a bar on a terminal and a line per network elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from conadv.lab.bench.model_checks import check_models

    if not wanted:
        return
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), Remaining(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(wanted[0].name, total=len(wanted))
        following = [*(target.name for target in wanted[1:]), ""]
        found = check_models(wanted, time_limit=time_limit)
        for row, next_name in zip(found, following, strict=True):
            results.add(row)
            progress.update(bar, advance=1, description=next_name)
            if not console.is_terminal:
                typer.echo(_line(row), err=True)
            elif not row.works:
                progress.console.print(_line(row), markup=False, highlight=False)


def _line(row: CheckedModel) -> str:
    return f"{row.name}: {'works' if row.works else row.reason} ({row.seconds:.1f} s)"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": row["name"],
        "normalisation": row["normalisation"] or "none",
        "split": row["split_layers"],
        "pixels": row["image_size"],
        "seconds": row["seconds"],
        "result": "works" if row["works"] else row["reason"],
    }

"""``conadv data``: which data sets there are, and getting them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._show import table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """List the data sets, or get one."""


@app.command("list")
def list_data() -> None:
    """List the data sets that a recipe can name."""
    from conadv.data import DATASETS

    table([{"data set": name, "what it is": text} for name, text in DATASETS.items()])
    typer.echo("To get one: conadv data fetch NAME")


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder of the data.", show_default="$CONADV_DATA or the user's cache"),
    ] = None,
) -> None:
    """Bring a data set here, checked against its checksum, and say what is in it."""
    from conadv.data import load_dataset

    found = load_dataset(name, root, say=typer.echo)
    channels, height, width = found.train_images.shape[1:]
    typer.echo(
        f"{found.name}: {len(found.train_images):,} training and {len(found.test_images):,} test "
        f"images, {height} x {width}, {channels} channel(s), {len(found.classes)} classes"
    )
    typer.echo(f"from {found.source}; licence {found.licence}")

"""``conadv data``: which data sets there are, and getting them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._show import table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DATASETS = {
    "fashion-mnist-subset": "Fashion-MNIST, 10 classes of clothes, 28 x 28; in the package",
    "cifar10": "CIFAR-10, 60,000 photographs of 10 classes, 32 x 32; downloaded",
    "synthetic": "made-up coloured blobs for dry runs; see data.synthetic in a recipe",
}
"""Every data set a recipe can name, in a line."""


@app.callback()
def _data() -> None:
    """List the data sets, or get one."""


@app.command("list")
def list_data() -> None:
    """List the data sets that a recipe can name."""
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

    found = load_dataset(name, root)
    channels, height, width = found.train_images.shape[1:]
    typer.echo(
        f"{found.name}: {len(found.train_images):,} training and {len(found.test_images):,} test "
        f"images, {height} x {width}, {channels} channel(s), {len(found.classes)} classes"
    )
    typer.echo(f"from {found.source}; licence {found.licence}")

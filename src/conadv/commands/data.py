"""``conadv data``: which data sets there are, and getting them."""

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
    from conadv.trainer.data import DATASETS

    files = "images of any size where they lie, also ImageNet's archives: data.root=WHERE"
    own = "an ImageDataset of your own, or what makes one (docs/recipes.md)"
    rows = {**DATASETS, "files": files, "module:attribute": own}
    table([{"data set": name, "what it is": text} for name, text in rows.items()])
    typer.echo("To get one: conadv data fetch NAME; for files see docs/data.md")


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder of the data.", show_default="$CONADV_DATA or the user's cache"),
    ] = None,
) -> None:
    """Bring a data set here, checked against its checksum, and say what is in it."""
    from conadv.trainer.data import load_dataset

    found = load_dataset(name, root, say=typer.echo)
    channels, height, width = found.train_images.shape[1:]
    typer.echo(
        f"{found.name}: {len(found.train_images):,} training and {len(found.test_images):,} test "
        f"images, {height} x {width}, {channels} channel(s), {len(found.classes)} classes"
    )
    typer.echo(f"from {found.source}; licence {found.licence}")


@app.command("shard")
def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of images or of ImageNet's archives, pattern or address of shards, hf://.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    split: Annotated[str, typer.Option(help="Which images: train, val or test.")] = "train",
    images_per_shard: Annotated[int, typer.Option(help="Images in each shard.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Of the order in which images are mixed.")] = 0,
) -> None:
    """Write images as WebDataset shards: fewer, larger files.

    Images stay as they are. After an interruption the same command goes on where it was.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from conadv.trainer.data.sources import open_source, write_shards

    found = open_source(source, split)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(found.name, total=len(found))
            made = write_shards(
                found,
                out,
                images_per_shard=images_per_shard,
                seed=seed,
                progress=lambda done, _: bar.update(task, completed=done),
            )
    except KeyboardInterrupt:
        typer.echo("finished shards are kept; the same command goes on", err=True)
        raise
    typer.echo(
        f"{made.images:,} images in {len(made.shards()):,} shards, {len(made.classes):,} classes: "
        f"{out}"
    )

"""Arguments that several commands take, described once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def _device(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise typer.BadParameter(f"device {name}: allowed are auto, cpu, mps, cuda and cuda:N.")
    return name


def check_run(run: Path, overrides: Sequence[str], branch: str | None = None) -> None:
    """Raise what is wrong with words about a run, before the imports that take seconds."""
    from conadv.trainer.checkpoint.saved_recipe import saved_branch, saved_recipe

    saved_branch(*saved_recipe(run, overrides, checked=False), branch)


def check_split(name: str) -> str:
    """Refuse a split that is neither train nor test."""
    if name not in ("train", "test"):
        raise typer.BadParameter(f"split {name}: allowed are train and test.")
    return name


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Checkpoint = Annotated[
    str, typer.Option(help="last, best (on validation images), or a checkpoint's file name.")
]
Branch = Annotated[
    str | None,
    typer.Option(help="Normalisation branch: clean or adversarial.", show_default="recipe's"),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="recipe's", callback=_device),
]
BenchDevice = Annotated[str, typer.Option(help="cpu or cuda.", callback=_device)]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name (see `conadv recipes list`), YAML file, or run folder."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as optimizer.lr=10 seed=1."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes that leave the weights alone, such as data.root=DIR."
    ),
]
Json = Annotated[Path | None, typer.Option(help="Also write everything here, as JSON.")]

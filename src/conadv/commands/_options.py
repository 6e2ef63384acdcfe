"""Arguments that several commands take, described once."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Checkpoint = Annotated[
    str, typer.Option(help="last, best (on validation images), or a checkpoint's file name.")
]
Branch = Annotated[
    str | None,
    typer.Option(help="Normalisation branch: clean or adversarial.", show_default="recipe's"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="recipe's")
]

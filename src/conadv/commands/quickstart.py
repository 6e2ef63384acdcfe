"""``conadv quickstart``: twelve short runs and what each method gained and cost."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the page.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """Train a small network at a small batch, and three ways at a large one, on three seeds.

    Real images, some minutes; a table and an HTML page with what each method gained and cost.
    """
    from conadv.lab.quickstart import run

    run(out)

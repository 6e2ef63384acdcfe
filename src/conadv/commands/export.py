"""``conadv export``: the plain network of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._options import Branch, Checkpoint, Run


def export(
    run: Run,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to.", show_default="RUN/model.safetensors"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes that leave the weights alone."),
    ] = None,
    checkpoint: Checkpoint = "last",
    branch: Branch = None,
) -> None:
    """Write a run's plain network, as safetensors.

    The file has the keys of the original model: torchvision and timm load it by name.
    """
    from conadv.trainer.evaluation.export import export_run
    from conadv.trainer.recipe import load_recipe

    overrides = overrides or []
    if path is not None and "=" in path.name and path.suffix != ".safetensors":
        path, overrides = None, [str(path), *overrides]
    written = export_run(run, path, checkpoint=checkpoint, branch=branch, overrides=overrides)
    library, _, name = load_recipe(run).model.name.partition("/")
    typer.echo(f"written: {written}")
    typer.echo("to load it:")
    typer.echo("  from safetensors.torch import load_file")
    if library == "timm":
        typer.echo(f'  model = timm.create_model("{name}", num_classes=..., in_chans=...)')
    elif library == "torchvision":
        typer.echo(f'  model = torchvision.models.get_model("{name}", num_classes=...)')
    else:
        typer.echo("  from conadv.trainer.models.zoo import create_model")
        typer.echo(f'  model = create_model("{library}/{name}", in_chans=..., num_classes=...)')
    typer.echo(f'  model.load_state_dict(load_file("{written}"))')

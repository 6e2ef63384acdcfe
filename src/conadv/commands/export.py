"""``conadv export``: the plain network of a run."""

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._options import Branch, Checkpoint, Overrides, Run, check_run


def export(
    run: Run,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to.", show_default="RUN/model.safetensors"),
    ] = None,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "last",
    branch: Branch = None,
    card: Annotated[
        Path | None, typer.Option(help="Also write a model card here, in Markdown.")
    ] = None,
) -> None:
    """Write a run's plain network, as safetensors or as ONNX.

    A safetensors file has the keys of the original model: torchvision and timm load it by name. A
    FILE that ends in .onnx takes images on [0, 1] and is compared with the network by onnxruntime.
    """
    overrides = overrides or []
    if path is not None and "=" in path.name and path.suffix not in (".safetensors", ".onnx"):
        path, overrides = None, [str(path), *overrides]
    check_run(run, overrides, branch)
    from conadv.trainer.evaluation.export import export_run, read_metadata
    from conadv.trainer.evaluation.model_card import loading_code

    written = export_run(
        run, path, checkpoint=checkpoint, branch=branch, overrides=overrides, card=card
    )
    typer.echo(f"written: {written}")
    if card is not None:
        typer.echo(f"written: {card}")
    typer.echo("to load it:\n\n" + loading_code(read_metadata(written), written), nl=False)

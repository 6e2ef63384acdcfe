"""``conadv bench``: remake the measurements on your own machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from conadv._files import write_json
from conadv.commands._show import table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[Path | None, typer.Option(help="Also write rows and environment here.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@app.callback()
def _bench() -> None:
    """Measure what steps cost on this machine."""


@app.command("steps")
def steps(
    model: Annotated[str, typer.Option(help="Network, as in a recipe.")] = "cifar/resnet18",
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    image_size: Annotated[int, typer.Option(min=1, help="Height and width in pixels.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 10,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    json: Json = None,
) -> None:
    """Compare a training step of every schedule with an ordinary one.

    Counted operations, time and peak memory, each as a ratio.
    """
    from conadv.lab.bench.steps import run

    _check_device(device)
    with _status() as say:
        found = run(
            model,
            batch,
            device,
            _dtype(dtype),
            repeats=repeats,
            image_size=image_size,
            compiled=compiled,
            memory=memory,
            on_progress=say,
        )
    _show(found, json)


@app.command("optimizers")
def optimizers(
    model: Annotated[
        str, typer.Option(help="Network whose parameters are updated.")
    ] = "timm/resnet50",
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the parameters: fp32 or bf16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 20,
    json: Json = None,
) -> None:
    """Compare LARS and LAMB steps with timm's, where timm is installed."""
    from conadv.lab.bench.optimizers import run

    _check_device(device)
    with _status() as say:
        found = run(model, device, _dtype(dtype), repeats=repeats, on_progress=say)
    _show(found, json)


def _dtype(name: str) -> str:
    full = _DTYPES.get(name, name)
    if full not in _DTYPES.values():
        raise typer.BadParameter(f"--dtype {name}: allowed are {', '.join(_DTYPES)}.")
    return full


def _check_device(name: str) -> None:
    from conadv.trainer.run.device import resolve_device

    resolve_device(name)


def _status() -> Any:
    """A line on the terminal that says what is being measured."""
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def status() -> Any:
        with Console(stderr=True).status("starting") as shown:
            yield lambda text: shown.update(text)

    return status()


def _show(found: dict[str, Any], path: Path | None) -> None:
    table(found["rows"])
    if path is not None:
        write_json(path, found)
        typer.echo(f"written: {path}")

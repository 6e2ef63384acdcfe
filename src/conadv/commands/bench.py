"""``conadv bench``: remake the measurements on your own machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from conadv._files import write_json
from conadv.commands._options import BenchDevice, Json
from conadv.commands._show import table
from conadv.trainer.models.names import check_library

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Option(help="Network, as in a recipe.")]
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@app.callback()
def _bench() -> None:
    """Measure what steps cost on this machine."""


@app.command("steps")
def steps(
    model: Model = "cifar/resnet18",
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    device: BenchDevice = "cpu",
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
    full = _checked(model, dtype)
    from conadv.lab.bench.steps import run

    _check_device(device)
    with _status() as say:
        found = run(
            model,
            batch,
            device,
            full,
            repeats=repeats,
            image_size=image_size,
            compiled=compiled,
            memory=memory,
            on_progress=say,
        )
    _show(found, json)


@app.command("optimizers")
def optimizers(
    model: Model = "timm/resnet50",
    device: BenchDevice = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the parameters: fp32 or bf16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 20,
    json: Json = None,
) -> None:
    """Compare LARS and LAMB steps with timm's, where timm is installed."""
    full = _checked(model, dtype)
    from conadv.lab.bench.optimizers import run

    _check_device(device)
    with _status() as say:
        found = run(model, device, full, repeats=repeats, on_progress=say)
    _show(found, json)


def _checked(model: str, dtype: str) -> str:
    """The dtype as torch names it; what is wrong is said before the imports that take seconds."""
    full = _DTYPES.get(dtype, dtype)
    if full not in _DTYPES.values():
        raise typer.BadParameter(f"--dtype {dtype}: allowed are {', '.join(_DTYPES)}.")
    check_library(model)
    return full


def _check_device(name: str) -> None:
    from conadv.trainer.run.device import resolve_device

    resolve_device(name)


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being measured."""
    from rich.console import Console

    with Console(stderr=True).status("starting") as shown:
        yield shown.update


def _show(found: dict[str, Any], path: Path | None) -> None:
    table(found["rows"])
    if path is not None:
        write_json(path, found)
        typer.echo(f"written: {path}")

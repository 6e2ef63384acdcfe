"""``conadv train``: one run from a recipe."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conadv._words import duration
from conadv.commands._options import Changes, RecipeName
from conadv.commands._show import facts, quote, say, table

if TYPE_CHECKING:
    from conadv.trainer.probe.dry_run import DryRun
    from conadv.trainer.recipe import Recipe


def train(
    recipe: RecipeName,
    overrides: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder.", show_default="runs/NAME-SEED"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the run folder, bit for bit.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(help="Images per weight update, the same as batch.global_batch=N."),
    ] = None,
    micro_batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Images per forward pass; auto: as many as fit (few are faster on a CPU).",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes on this machine, one per GPU (many machines: torchrun)."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a profiler trace of a few steps (Chrome format)."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With --devices: start failed processes again so often.")
    ] = 0,
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue",
            help="Under SLURM: put the job back in the queue when a signal stops it.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Without data: take one step on made-up images, show schedule, memory and time.",
        ),
    ] = False,
) -> None:
    """Train a network as a recipe says.

    Progress goes to the terminal, to metrics.jsonl and to logging.loggers; result.json has the
    outcome. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 write a checkpoint and say how to go on.
    """
    from conadv.commands._launch import slurm_job
    from conadv.trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])  # before the imports that take seconds
    if batch is not None or micro_batch is not None:
        from conadv.trainer.recipe.load import resized

        given = None if micro_batch in (None, "auto") else _images(micro_batch)
        loaded = resized(loaded, batch, given)

    if dry_run:
        _dry_run(loaded, devices or 1, resume=resume, fitted=micro_batch == "auto")
        return

    if requeue and slurm_job() is None:
        raise typer.BadParameter("--requeue is for jobs of SLURM, and this is none. Leave it out.")

    if max_restarts and devices in (None, 1) and "RANK" not in os.environ:
        raise typer.BadParameter(
            f"--max-restarts {max_restarts}: it is the launcher of several processes that starts "
            "them again. Give --devices N as well, or leave it out."
        )
    if devices is not None and devices > 1 and "RANK" not in os.environ:
        from conadv.commands._launch import launch, own_arguments, without
        from conadv.trainer.distributed import World

        World(size=devices).slots(loaded.micro_steps)  # says at once which numbers can
        arguments = without(without(own_arguments(), "--devices"), "--max-restarts")
        raise typer.Exit(launch(arguments, devices, max_restarts))

    folder = out or _default_folder(recipe, loaded)
    # Started again by the launcher after a failure: the run is there already.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    _train(loaded, folder, resume, micro_batch == "auto", trace, slurm_job() if requeue else None)


def _train(
    recipe: Recipe, folder: Path, resume: bool, fit: bool, trace: Path | None, job: str | None
) -> None:
    """Make the run in this process; ``job`` goes back into SLURM's queue if a signal stops it."""
    from rich.console import Console

    from conadv.commands._launch import requeue
    from conadv.errors import Interrupted
    from conadv.trainer.run.output import steady_streams
    from conadv.trainer.run.signals import StopRequest
    from conadv.trainer.start import train as run

    main = int(os.environ.get("RANK", "0")) == 0
    stop = StopRequest()
    with steady_streams():
        try:
            result = run(
                recipe,
                folder,
                resume=resume,
                fit_micro_batch=fit,
                trace=trace,
                console=Console(stderr=True),
                stop=stop,
            )
        except Interrupted:
            if job is not None and main and stop.reason != "SIGINT":
                requeue(job)
            raise
        if main:
            if not (sys.stdout.isatty() and sys.stderr.isatty()):
                say(result.summary)  # on a terminal it is the last line above
            say(_next(folder))


def _dry_run(recipe: Recipe, devices: int, *, resume: bool, fitted: bool) -> None:
    for option, given in (("--resume", resume), ("--micro-batch auto", fitted)):
        if given:
            raise typer.BadParameter(f"{option} is for runs: leave it out with --dry-run.")
    from conadv.trainer.probe.dry_run import dry_run

    _show_dry_run(dry_run(recipe, devices))


def _images(given: str) -> int:
    try:
        return int(given.replace("_", "").replace(",", ""))
    except ValueError:
        raise typer.BadParameter(
            f"--micro-batch {given}: give a number of images, or auto."
        ) from None


def _default_folder(given: str, recipe: Recipe) -> Path:
    """``runs/NAME-SEED``; a run folder given as the recipe is its own."""
    path = Path(given)
    if path.is_dir() and (path / "recipe.yaml").exists():
        return path
    return Path("runs") / f"{recipe.name}-{recipe.seed}"


def _next(folder: Path) -> str:
    where = quote(folder)
    return "\n".join(
        [
            "next, stronger attacks, the plain network as a file, and curves:",
            f"  conadv evaluate {where}",
            f"  conadv export {where}",
            f"  tensorboard --logdir {quote(folder.parent)}",
        ]
    )


def _show_dry_run(found: DryRun) -> None:
    """Print it: the step, the schedule, memory and time."""
    recipe, (channels, height, width) = found.recipe, found.image
    total = recipe.batch.global_batch
    say(f"{recipe.name}: a dry run, nothing is trained or written.\n")
    passes = f"{found.micro_steps:,} x {recipe.micro_batch:,} images"
    compute = f"{found.compute_factor:.2f} times ordinary training on {total:,} images"
    rows = {
        "network": f"{recipe.model.name}, {found.parameters / 1e6:.2f} M parameters",
        "branches": f"{', '.join(recipe.branches)}; batch norm in groups of "
        f"{recipe.norm_group:,} images",
        "data": f"{found.train_images:,} images of {channels} x {height} x {width} in "
        f"{found.classes:,} classes",
        "step": f"{total:,} images ({recipe.fresh_per_step:,} fresh ones; "
        f"{found.trained_per_step:,} trained on in all branches)",
        "accumulation": f"{passes} on {'each of ' if found.devices > 1 else ''}"
        f"{found.devices:,} device{'s' if found.devices > 1 else ''}",
        "compute of a step": compute,
        "length": f"{found.steps:,} steps ({found.epochs:.1f} epochs), warm-up "
        f"{found.warmup_steps:,}",
        "tried": f"one step on {found.device}, {found.precision}: loss {found.loss:.4g}",
        "time of a step": f"about {duration(found.step_seconds)} on such devices",
        "time of the run": f"about {duration(found.seconds)}",
    }
    facts(rows)
    typer.echo()
    points = [
        {
            "at": point.what,
            "step": point.step,
            "epoch": f"{point.epoch:.2f}",
            "rate": f"{point.learning_rate:.4g}",
        }
        for point in found.schedule
    ]
    table(points, "schedule")
    typer.echo()
    kinds = [field.name for field in fields(found.memory)]
    memory = [{"memory per device": k, "MB": _megabytes(getattr(found.memory, k))} for k in kinds]
    table([*memory, {"memory per device": "together", "MB": _megabytes(found.memory.total)}])
    say("")
    for note in found.notes:
        say(f"- {note}")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"

"""How ``conadv train --dry-run`` shows what a recipe comes to."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import typer

from conadv.commands._show import table
from conadv.commands.plan import duration

if TYPE_CHECKING:
    from conadv.training.dry_run import DryRun


def show(found: DryRun) -> None:
    """Print it: the step, the schedule, memory and time."""
    channels, height, width = found.image
    typer.echo(f"{found.name}: a dry run, nothing is trained or written.\n")
    passes = f"{found.micro_steps:,} x {found.micro_batch:,} images"
    compute = f"{found.compute_factor:.2f} times ordinary training on {found.global_batch:,} images"
    rows = {
        "network": f"{found.model}, {found.parameters / 1e6:.2f} M parameters",
        "branches": f"{', '.join(found.branches)}; batch norm in groups of "
        f"{found.norm_group:,} images",
        "data": f"{found.train_images:,} images of {channels} x {height} x {width} in "
        f"{found.classes:,} classes",
        "step": f"{found.global_batch:,} images ({found.fresh_per_step:,} fresh ones; "
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
    table([{"": name, "what it comes to": value} for name, value in rows.items()])
    typer.echo()
    points = [
        {
            "at": point.what,
            "step": point.step,
            "epoch": f"{point.epoch:.2f}",
            "learning rate": f"{point.learning_rate:.4g}",
        }
        for point in found.schedule
    ]
    table(points, "schedule")
    typer.echo()
    kinds = [field.name for field in fields(found.memory)]
    memory = [{"memory per device": k, "MB": _megabytes(getattr(found.memory, k))} for k in kinds]
    table([*memory, {"memory per device": "together", "MB": _megabytes(found.memory.total)}])
    typer.echo("\nnotes:")
    for note in found.notes:
        typer.echo(f"  {note}")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"

"""One run, from a recipe to ``result.json``."""

from pathlib import Path

import torch
from rich.console import Console

from conadv.errors import RecipeError
from conadv.precision import resolve_device
from conadv.training.allocator import keep_freed_memory
from conadv.training.recipe import Recipe, differing_fields, load_recipe
from conadv.training.result import Result
from conadv.training.run import Run
from conadv.training.run_folder import RunFolder
from conadv.training.signals import StopRequest


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    console: Console | None = None,
    log_every: int = 1,
    stop: StopRequest | None = None,
) -> Result:
    """Train as a recipe says, and leave everything about it in a run folder.

    Args:
        recipe: What to train and how.
        out: The run folder; absent or empty, or with ``resume`` the folder of the run.
        resume: Continue the run in ``out`` bit for bit from its newest readable checkpoint. A run
            that was stopped before its first checkpoint begins anew, a finished one is returned
            as it is, and in an empty folder a run is started: so a job that may be restarted at
            any time is always started with ``resume``.
        console: Where progress goes; None writes to stderr, ``Console(quiet=True)`` is silent.
        log_every: Write a metrics line every so many steps.
        stop: A flag that is read at each step boundary, for callers that want to set it
            themselves. Ctrl-C and SIGTERM set it too, where this is the main thread.

    Returns:
        What ``result.json`` holds.

    Raises:
        RunFolderError: ``out`` holds a run and ``resume`` is off, or cannot be written.
        RecipeError: ``resume`` with another recipe than the run was started with.
        CheckpointError: No checkpoint of the run can be read, or the last could not be written.
        NonFiniteError: The loss was NaN or infinite and the recipe says stop.
        Interrupted: Asked to stop; a checkpoint is written and the message says how to go on.
    """
    folder = RunFolder(out)
    resuming = resume and folder.recipe.exists()
    if resuming:
        _check_same_recipe(folder, recipe)
        if folder.result.exists() and (done := Result.read(folder.result)).status == "finished":
            return done
    else:
        folder.require_free()
    device = resolve_device(recipe.hardware.device)
    if device.type == "cpu":
        keep_freed_memory()
    threads = torch.get_num_threads()
    streams = [device] if device.type == "cuda" else []
    try:
        if recipe.hardware.threads is not None:
            torch.set_num_threads(recipe.hardware.threads)
        with torch.random.fork_rng(devices=streams), stop or StopRequest() as request:
            run = Run(recipe, folder, request, console or Console(stderr=True), log_every)
            try:
                run.open(resuming)
                return run.complete()
            finally:
                run.close()
    finally:
        torch.set_num_threads(threads)


def _check_same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    before = load_recipe(folder.recipe)
    fields = differing_fields(before, recipe)
    if fields:
        raise RecipeError(
            f"the run in {folder.root} was started with another recipe; these fields differ: "
            f"{'; '.join(fields)}. Type {folder.resume_command()}, or start a new run with "
            "another --out."
        )

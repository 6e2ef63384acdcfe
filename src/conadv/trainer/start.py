"""One run, from a recipe to ``result.json``."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import nn

from conadv.errors import (
    ConadvError,
    DataError,
    DistributedError,
    RecipeError,
    RunHeldError,
    in_words,
)
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.distributed import World, join
from conadv.trainer.distributed.world import is_lost_connection, local_device
from conadv.trainer.loop import Run
from conadv.trainer.own import with_logger, with_own
from conadv.trainer.probe.micro_batch import fit, with_micro_batch
from conadv.trainer.recipe import Recipe, change_recipe, differing_fields, load_recipe
from conadv.trainer.run.device import keep_freed_memory, resolve_device
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.loggers.logger import Logger
from conadv.trainer.run.output import say, steady
from conadv.trainer.run.result import Result
from conadv.trainer.run.signals import StopRequest

T = TypeVar("T")


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    fit_micro_batch: bool = False,
    trace: Path | None = None,
    console: Console | None = None,
    log_every: int = 1,
    stop: StopRequest | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    dataset: ImageDataset | Callable[..., Any] | None = None,
    criterion: Callable[..., Any] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    logger: Callable[..., Logger] | None = None,
) -> Result:
    """Train as a recipe says, and leave everything about it in a run folder.

    What is given as an object takes the place of a field of the recipe and is kept there by its
    name, ``module:attribute``, so that the run can be resumed, evaluated and exported anywhere
    where that can be imported. What cannot be, such as a network that is there already or a
    function within another one, is known in this process alone; see `conadv.trainer.own`.

    Args:
        recipe: What to train and how.
        out: The run folder; absent or empty, or with ``resume`` the folder of the run.
        resume: Continue the run in ``out`` bit for bit from its newest readable checkpoint. A run
            that was stopped before its first checkpoint was whole begins anew, a finished one is
            returned as it is, and in an empty folder a run is started: so a job that may be
            restarted at any time is always started with ``resume``.
        fit_micro_batch: Take the largest micro-batch that fits into memory instead of the
            recipe's; the normalisation groups stay. A resumed run keeps what was found.
        trace: Write a profiler trace of a few steps into this file.
        console: Where progress goes; None writes to stderr, ``Console(quiet=True)`` is silent.
        log_every: Write a metrics line every so many steps.
        stop: A flag that is read at each step boundary, for callers that want to set it
            themselves. Ctrl-C and SIGTERM set it too, where this is the main thread.
        model: Instead of ``model.name``: a network, of which a copy is trained, or what makes
            one from ``in_chans=``, ``num_classes=`` and ``model.options``.
        dataset: Instead of ``data.dataset``: an `ImageDataset`, or what makes one from
            ``data.options``.
        criterion: Instead of ``train.loss``: ``criterion(logits, labels)``, the mean over the
            images, or a class of such.
        optimizer: Instead of ``optimizer.name``: what makes one from parameter groups and
            ``lr=``, ``weight_decay`` being in the groups.
        logger: Besides ``logging.loggers``: what makes a `Logger` from a `LoggedRun`.

    Returns:
        What ``result.json`` holds.

    Raises:
        DistributedError: The processes of the launch cannot work together.
        RunFolderError: ``out`` holds a run and ``resume`` is off, or cannot be written.
        RunHeldError: Another process trains in ``out``.
        RecipeError: ``resume`` with another recipe than the run was started with.
        CheckpointError: No checkpoint of the run can be read, or the last could not be written.
        NonFiniteError: The loss was NaN or infinite and the recipe says stop.
        Interrupted: Asked to stop; a checkpoint is written and the message says how to go on.
    """
    recipe = with_logger(recipe, logger)
    recipe = with_own(
        recipe,
        {
            "model.name": model,
            "data.dataset": dataset,
            "train.loss": criterion,
            "optimizer.name": optimizer,
        },
    )
    with (
        join(recipe.hardware.device, recipe.hardware.timeout) as world,
        contextlib.ExitStack() as held,
    ):
        folder = RunFolder(out)
        console = steady(console or Console(stderr=True)) if world.main else Console(quiet=True)
        resume = any(world.gather(resume))
        if fit_micro_batch:
            recipe = _on_every_rank(world, lambda: _fitted(folder, recipe, world, console))
        done = _on_every_rank(world, lambda: _finished(folder, recipe, resume))
        if done is not None:
            say(console, f"{recipe.name}: this run has ended before: {done.summary}")
            return done
        held.callback(folder.lock.release)
        tell = partial(say, console)
        resuming = _on_every_rank(world, lambda: _begin(folder, recipe, resume, tell))
        device = resolve_device(local_device(recipe.hardware.device, world))
        if device.type == "cpu":
            keep_freed_memory()
        threads = torch.get_num_threads()
        streams = [device] if device.type == "cuda" else []
        try:
            if wanted := _threads(recipe, world, device):
                torch.set_num_threads(wanted)
            with torch.random.fork_rng(devices=streams), stop or StopRequest() as request:
                make = partial(
                    Run,
                    recipe,
                    folder,
                    request,
                    console,
                    log_every,
                    world,
                    trace,
                    resuming=resuming,
                )
                return _run(make, world)
        finally:
            torch.set_num_threads(threads)


def _run(make: Callable[[], Run], world: World) -> Result:
    with contextlib.ExitStack() as stack:
        try:
            run = make()
            stack.callback(run.close)
            run.begin()
            return run.complete()
        except Exception as error:
            if world.size == 1:
                raise
            if isinstance(error, ConadvError) and not isinstance(error, DataError | RunHeldError):
                error.on_every_rank = True
            elif is_lost_connection(error):
                raise _stopped(world, error) from error
            else:  # of this rank alone, or of the one that is the first to say so
                error.told = not world.watchdog.fail(in_words(error))  # type: ignore[attr-defined]
            raise


def _stopped(world: World, error: Exception) -> DistributedError:
    """Which process is gone or stuck; printed by one rank, raised by all that still can."""
    verdict = world.watchdog.lost()
    if verdict is not None:
        stopped = DistributedError(verdict.message)
        stopped.told = True
        return stopped
    return DistributedError(
        f"rank {world.rank} of {world.size}: another process is gone or did not answer "
        f"({str(error).splitlines()[0]}). Nothing since the last checkpoint is kept; the same "
        "command with --resume goes on from there."
    )


def _on_every_rank(world: World, action: Callable[[], T]) -> T:
    """Do it on rank 0; what goes wrong is raised on all ranks and told by one."""
    try:
        return world.on_main(action)
    except ConadvError as error:
        error.on_every_rank = world.size > 1
        raise


def _fitted(folder: RunFolder, recipe: Recipe, world: World, console: Console) -> Recipe:
    if folder.recipe.exists():
        batch = load_recipe(folder.recipe).batch
        return change_recipe(
            recipe, [f"batch.{n}={getattr(batch, n)}" for n in ("micro_batch", "norm_group")]
        )
    say(console, "Looking for the largest micro-batch that fits ...")
    found = fit(recipe, world)
    say(console, str(found))
    return with_micro_batch(recipe, found.micro_batch, found.norm_group)


def _finished(folder: RunFolder, recipe: Recipe, resume: bool) -> Result | None:
    """The result of a run that is to be resumed and has ended."""
    if not (resume and folder.recipe.exists() and folder.result.exists()):
        return None
    _check_same_recipe(folder, recipe)
    result = Result.read(folder.result)
    return result if result.status == "finished" else None


def _begin(folder: RunFolder, recipe: Recipe, resume: bool, tell: Callable[[str], None]) -> bool:
    """Take the folder for this run; whether there is one to be resumed in it."""
    folder.lock.take(tell)
    if not (resume and folder.recipe.exists()):
        folder.require_free()
        return False
    _check_same_recipe(folder, recipe)
    return True


def _threads(recipe: Recipe, world: World, device: torch.device) -> int | None:
    """CPU threads of this process; None leaves torch's choice."""
    if recipe.hardware.threads is None and world.size > 1 and device.type == "cpu":
        return max(1, (os.cpu_count() or 1) // world.local_size)
    return recipe.hardware.threads


def _check_same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    before = load_recipe(folder.recipe)
    fields = differing_fields(before, recipe)
    if fields:
        raise RecipeError(
            f"the run in {folder.root} was started with another recipe; these fields differ: "
            f"{'; '.join(fields)}. Type {folder.resume_command()}, or start a new run with "
            "another --out."
        )

"""The model of a run, read back from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conadv.errors import CheckpointError, doing
from conadv.trainer.build import make_model
from conadv.trainer.checkpoint.reshard import load_weights
from conadv.trainer.checkpoint.saved_recipe import saved_branch, saved_recipe
from conadv.trainer.checkpoint.store import CheckpointStore, load_checkpoint
from conadv.trainer.input.load import load_splits
from conadv.trainer.input.splits import Facts, Splits, facts_from
from conadv.trainer.recipe import Recipe
from conadv.trainer.run.device import resolve_device
from conadv.trainer.run.folder import RunFolder


@dataclass(frozen=True)
class SavedRun:
    """A run's recipe and weights, and on demand its data."""

    folder: RunFolder
    recipe: Recipe
    facts: Facts
    """About the data set, as the run had it."""
    model: nn.Module
    """The model in eval mode, its normalisation split as in training; averaged weights with EMA."""
    step: int
    device: torch.device

    @property
    def branches(self) -> tuple[str, ...]:
        """Normalisation branches of the model."""
        return self.recipe.branches

    @cached_property
    def splits(self) -> Splits:
        """The images; opened when they are asked for.

        Raises:
            DataError: They cannot be had.
        """
        return load_splits(self.recipe, self.device)

    def branch(self, name: str | None) -> str:
        """A branch of the model; None takes the one that the recipe evaluates.

        Raises:
            RunFolderError: The model has no such branch.
        """
        return saved_branch(self.folder, self.recipe, name)


def load_run(
    run: Path | str,
    *,
    checkpoint: str = "last",
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> SavedRun:
    """Read the model of a run.

    Args:
        run: The run folder.
        checkpoint: ``"last"``, ``"best"``, or a file name in the run's checkpoints folder.
        device: Such as ``"cpu"``; None takes the recipe's.
        overrides: ``dotted.name=value`` on top of the run's recipe: of images that have moved
            (``data.root=``), evaluation, attack or hardware.

    Raises:
        RecipeError: An override is impossible, or of something that the weights depend on.
        RunFolderError: The folder holds no run.
        CheckpointError: The checkpoint is missing, damaged, or does not fit the recipe.
    """
    folder, recipe = saved_recipe(run, overrides)
    place = resolve_device(device or recipe.hardware.device)
    state = _read(folder, checkpoint)
    facts = facts_from(state["data"])
    with torch.random.fork_rng(devices=[]):
        model = make_model(recipe, facts, download=False)
    try:
        with doing(f"reading the weights of {folder.root}"):
            load_weights(model, _weights(state["trainer"]))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint {checkpoint!r} of {folder.root} does not fit the model of its "
            f"recipe: {str(error).splitlines()[0]} Was recipe.yaml changed by hand?"
        ) from error
    step = int(state["trainer"]["step"])
    return SavedRun(folder, recipe, facts, model.to(place).eval(), step, place)


def _read(folder: RunFolder, checkpoint: str) -> dict[str, Any]:
    store = CheckpointStore(folder.checkpoints, keep=1)
    if checkpoint == "last":
        state = store.load_newest()
        if state is None:
            raise CheckpointError(
                f"{folder.root} has no checkpoint yet. Continue it: {folder.resume_command()}"
            )
        return state
    if checkpoint == "best":
        if not store.best.exists():
            raise CheckpointError(
                f"{folder.root} has no best checkpoint: it is chosen on the validation split "
                "(data.validation above 0). Use checkpoint 'last'."
            )
        return load_checkpoint(store.best)
    return load_checkpoint(folder.checkpoints / checkpoint)


def _weights(trainer: dict[str, Any]) -> dict[str, Any]:
    """The model's state, or where weights were averaged, the average's."""
    if trainer["ema"] is None:
        return dict(trainer["model"])
    inner = "module."
    return {k.removeprefix(inner): v for k, v in trainer["ema"].items() if k.startswith(inner)}

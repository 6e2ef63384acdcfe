"""The model of a run, read back from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conadv.errors import CheckpointError, RecipeError, RunFolderError
from conadv.trainer.build import branches_of, make_model
from conadv.trainer.checkpoint.reshard import load_weights
from conadv.trainer.checkpoint.store import CheckpointStore, load_checkpoint
from conadv.trainer.input.load import load_splits
from conadv.trainer.input.splits import Facts, Splits, facts_from
from conadv.trainer.recipe import Recipe, load_recipe
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
    branches: tuple[str, ...]
    step: int
    device: torch.device

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
        name = name or self.recipe.evaluation.branch
        if name not in self.branches:
            raise RunFolderError(
                f"branch {name!r}: the model of {self.folder.root} has "
                f"{' and '.join(self.branches)}."
            )
        return name


CHANGEABLE = ("data.root", "data.files.", "evaluation.", "attack.", "hardware.")
"""Settings that a finished run may be looked at with, because its weights do not depend on them."""


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
    folder = RunFolder(run)
    folder.require_run()
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise RecipeError(
                f"{override!r}: the weights of {folder.root} were trained without it. Allowed are "
                f"settings of {', '.join(name.rstrip('.') for name in CHANGEABLE)}."
            )
    recipe = load_recipe(folder.recipe, overrides)
    place = resolve_device(device or recipe.hardware.device)
    state = _read(folder, checkpoint)
    facts = facts_from(state["data"])
    with torch.random.fork_rng(devices=[]):
        model = make_model(recipe, facts, download=False)
    try:
        load_weights(model, _weights(state["trainer"]))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint {checkpoint!r} of {folder.root} does not fit the model of its "
            f"recipe: {str(error).splitlines()[0]} Was recipe.yaml changed by hand?"
        ) from error
    step = int(state["trainer"]["step"])
    return SavedRun(folder, recipe, facts, model.to(place).eval(), branches_of(recipe), step, place)


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

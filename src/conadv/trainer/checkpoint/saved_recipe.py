"""The recipe of a run in a folder, as it may be looked at afterwards; read without torch."""

from collections.abc import Sequence
from pathlib import Path

from conadv.errors import RecipeError, RunFolderError
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run.folder import RunFolder

CHANGEABLE = ("data.root", "data.files.", "evaluation.", "attack.", "hardware.")
"""Settings that a finished run may be looked at with, because its weights do not depend on them."""


def saved_recipe(
    run: Path | str, overrides: Sequence[str] = (), *, checked: bool = True
) -> tuple[RunFolder, Recipe]:
    """A run's folder and its recipe, with overrides on top; ``checked`` as in `load_recipe`.

    Raises:
        RecipeError: An override is impossible, or of something that the weights depend on.
        RunFolderError: The folder holds no run.
    """
    folder = RunFolder(run)
    folder.require_run()
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise RecipeError(
                f"{override!r}: the weights of {folder.root} were trained without it. Allowed are "
                f"settings of {', '.join(name.rstrip('.') for name in CHANGEABLE)}."
            )
    return folder, load_recipe(folder.recipe, overrides, checked=checked)


def saved_branch(folder: RunFolder, recipe: Recipe, name: str | None) -> str:
    """A branch of a run's model; None takes the one that its recipe evaluates.

    Raises:
        RunFolderError: The model has no such branch.
    """
    name = name or recipe.evaluation.branch
    if name not in recipe.branches:
        raise RunFolderError(
            f"branch {name!r}: the model of {folder.root} has {' and '.join(recipe.branches)}."
        )
    return name

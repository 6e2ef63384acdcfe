"""What tables call a recipe's method."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conadv.training.recipe.schema import Recipe

_SAM = {"sam": "SAM", "async": "async SAM"}


def method_label(recipe: Recipe) -> str:
    """``method.label``, or what the schedule, the update and the length of training come to.

    ``SAM``, ``Muon + recycled``, ``vanilla, 2x steps``. LARS, SGD and AdamW have no name of their
    own here: which of them a table compares with is in its settings.
    """
    if recipe.method.label is not None:
        return recipe.method.label
    own = list(_own_names(recipe))
    schedule = _schedule(recipe)
    names = own if own and schedule == "vanilla" else [*own, schedule]
    longer = recipe.train.steps_factor
    return " + ".join(names) + (f", {longer:.3g}x steps" if longer != 1 else "")


def _own_names(recipe: Recipe) -> list[str]:
    optimizer, found = recipe.optimizer, []
    if optimizer.variance_reduction:
        found.append(f"VR-{optimizer.name.upper()}")
    elif optimizer.name in ("lamb", "muon"):
        found.append({"lamb": "LAMB", "muon": "Muon"}[optimizer.name])
    if recipe.method.sam != "none":
        found.append(_SAM[recipe.method.sam])
    if recipe.method.view != "none":
        found.append("extra view")
    return found


def _schedule(recipe: Recipe) -> str:
    method = recipe.method
    if method.schedule == "recycled" and method.budget == "fixed":
        return "recycled, fixed budget"
    if method.schedule == "lookahead" and method.tau != 1:
        return f"lookahead, tau {method.tau}"
    return method.schedule

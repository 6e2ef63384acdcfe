"""Another global batch for a recipe: which forward passes it is cut into."""

from __future__ import annotations

from conadv.errors import RecipeError
from conadv.training.recipe.files import change_recipe
from conadv.training.recipe.schema import Recipe


def resized(recipe: Recipe, global_batch: int | None, micro_batch: int | None = None) -> Recipe:
    """The recipe at another global batch or micro-batch.

    The micro-batch and the normalisation group stay where they divide the new sizes. Otherwise
    they become the largest divisors that are not larger; nothing else of the recipe changes, not
    even the learning rate, unless its ``optimizer.lr_rule`` says so.

    Args:
        recipe: Any.
        global_batch: Images per weight update; None keeps the recipe's.
        micro_batch: Images per forward pass; None as described.

    Raises:
        RecipeError: A size below 1, or a micro-batch that does not divide the global batch.
    """
    total = recipe.batch.global_batch if global_batch is None else global_batch
    for name, value in (("--batch", total), ("--micro-batch", micro_batch)):
        if value is not None and value < 1:
            raise RecipeError(f"{name} {value}: give a number of images from 1.")
    micro = micro_batch or _largest_divisor(total, recipe.micro_batch)
    group = _largest_divisor(micro, recipe.norm_group)
    sizes = {"global_batch": total, "micro_batch": micro, "norm_group": group}
    return change_recipe(recipe, [f"batch.{name}={value}" for name, value in sizes.items()])


def _largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)

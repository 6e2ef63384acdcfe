"""Load the images that a recipe names."""

from typing import Any

import torch

from conadv.errors import doing
from conadv.trainer.data import load_dataset
from conadv.trainer.data.split import split
from conadv.trainer.distributed import World
from conadv.trainer.input.resident_splits import ResidentSplits
from conadv.trainer.input.splits import Splits
from conadv.trainer.recipe import Recipe


def load_splits(recipe: Recipe, device: torch.device, world: World | None = None) -> Splits:
    """Load the data set of a recipe and cut it as the recipe says.

    Raises:
        DataError: The data cannot be had.
        RecipeError: There are fewer images than the recipe asks for.
    """
    with doing(f"reading the images (data.dataset={recipe.data.dataset})"):
        return _load(recipe, device, world)


def _load(recipe: Recipe, device: torch.device, world: World | None) -> Splits:
    settings = recipe.data
    if settings.dataset == "files":
        from conadv.trainer.input.file_splits import load_file_splits

        return load_file_splits(recipe, device, world or World())
    options: dict[str, Any] = settings.options
    if settings.dataset == "synthetic":
        options = settings.synthetic.model_dump()
    dataset = load_dataset(settings.dataset, settings.root, **options)
    train, held_out = split(dataset, settings.validation, recipe.split_seed, settings.train_images)
    return ResidentSplits(dataset, train, held_out, device, settings.test_unused)

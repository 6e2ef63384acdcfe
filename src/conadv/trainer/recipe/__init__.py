"""Recipes: typed settings of a run, read from YAML, changed by overrides, printed in full."""

from conadv.trainer.recipe.describe import dump_recipe
from conadv.trainer.recipe.load import change_recipe, load_recipe, make_recipe, recipe_names
from conadv.trainer.recipe.recipe import Recipe, differing_fields
from conadv.trainer.recipe.values import piecewise

__all__ = [
    "Recipe",
    "change_recipe",
    "differing_fields",
    "dump_recipe",
    "load_recipe",
    "make_recipe",
    "piecewise",
    "recipe_names",
]

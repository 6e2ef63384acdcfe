"""Recipes: typed settings of a run, read from YAML, changed by overrides, printed in full."""

from conadv.training.recipe.checks import as_schedule
from conadv.training.recipe.diff import differing_fields
from conadv.training.recipe.files import change_recipe, load_recipe, make_recipe, recipe_names
from conadv.training.recipe.render import dump_recipe
from conadv.training.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "as_schedule",
    "change_recipe",
    "differing_fields",
    "dump_recipe",
    "load_recipe",
    "make_recipe",
    "recipe_names",
]

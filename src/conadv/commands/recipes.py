"""``conadv recipes``: what comes with the package, and every setting of it."""

import sys

import typer

from conadv._words import fitted, width_of
from conadv.commands._options import Changes, RecipeName
from conadv.commands._show import by_numbers, percent, say, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _recipes() -> None:
    """List the recipes, or show one in full."""


@app.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package."""
    from conadv.trainer.recipe import load_recipe, recipe_names

    # Whether their fields go together is checked by the package's own tests.
    recipes = [load_recipe(name, checked=False) for name in recipe_names()]
    recipes.sort(key=lambda recipe: by_numbers(recipe.name))
    any_published = any(recipe.published is not None for recipe in recipes)
    rows = []
    for recipe in recipes:
        row = {
            "recipe": recipe.name,
            "batch": recipe.batch.global_batch,
            "method": recipe.method_label,
            "run here": recipe.verified,
        }
        rows.append(row | ({"published": percent(recipe.published)} if any_published else {}))
    table(rows)
    say("In full: conadv recipes show RECIPE")


@app.command("show")
def show(
    recipe: RecipeName,
    overrides: Changes = None,
) -> None:
    """Show a recipe in full, every field explained.

    The output is a recipe itself: write it to a file, change that, and train from it.
    """
    from conadv.trainer.recipe import dump_recipe, load_recipe, recipe_names

    changed = recipe not in recipe_names() or bool(overrides)
    found = load_recipe(recipe, overrides or [], checked=changed)
    width = width_of(sys.stdout)
    text = dump_recipe(found, min(width or 100, 100))
    typer.echo(fitted(text, width, "  "), nl=False)  # indented: still the same value in YAML

"""Write the table of shipped recipes in docs/recipes.md from the recipes themselves.

    python tools/recipe_table.py            # rewrite the table
    python tools/recipe_table.py --check    # say whether it is up to date; nothing is written

It stands between `<!-- recipes -->` and `<!-- end of recipes -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from conadv.trainer.input.random_images import images_of
from conadv.trainer.recipe import load_recipe, recipe_names

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BLOCK = re.compile(r"(<!-- recipes -->\n).*?(<!-- end of recipes -->)", re.DOTALL)
HEADER = ["recipe", "batch", "steps", "peak LR", "warm-up", "per BN group", "method"]
HEADER += ["published", "run by us"]
TEXT = (0, 6, 8)
"""Columns of words, which stand to the left."""


def rows() -> list[list[str]]:
    """One line per recipe, by family and batch; warm-up in steps."""
    recipes = [load_recipe(name) for name in recipe_names()]
    recipes.sort(key=lambda r: (_family(r.name), r.batch.global_batch, r.name))
    found = []
    for recipe in recipes:
        _, _, count = images_of(recipe)
        published = "" if recipe.published is None else f"{recipe.published:.1%}"
        found.append(
            [
                f"`{recipe.name}`",
                f"{recipe.batch.global_batch:,}",
                f"{recipe.total_steps(count):,}",
                f"{recipe.peak_lr:.4g}",
                f"{recipe.warmup_steps(count):,}",
                f"{recipe.norm_group:,}",
                recipe.method_label,
                published,
                "yes" if recipe.verified else "no",
            ]
        )
    return found


def _family(name: str) -> str:
    """The name without its batch."""
    return re.sub(r"-(\d+k?|\d+k-lamb)$", "", name)


def table() -> str:
    """In Markdown."""
    rule = ["---" if number in TEXT else "---:" for number in range(len(HEADER))]
    lines = [HEADER, rule, *rows()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def render(text: str) -> str:
    """The page with the table written anew."""
    new, count = BLOCK.subn(lambda m: m[1] + table() + m[2], text)
    if count != 1:
        raise SystemExit(f"{PAGE}: {count} places for the table; one is needed.")
    return new


def main() -> int:
    """Rewrite, or check."""
    before = PAGE.read_text(encoding="utf-8")
    after = render(before)
    if after == before:
        print("the table is up to date")
        return 0
    if "--check" in sys.argv:
        print("out of date: run python tools/recipe_table.py")
        return 1
    PAGE.write_text(after, encoding="utf-8")
    print(f"rewritten: {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

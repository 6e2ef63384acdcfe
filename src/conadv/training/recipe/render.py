"""A recipe as YAML in full, every field with what it means, its default and what is allowed."""

from __future__ import annotations

import textwrap
from typing import Any

from conadv.training.recipe._yaml import one_line
from conadv.training.recipe.fields import Field, all_fields
from conadv.training.recipe.schema import Recipe

_WIDTH = 100


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as commented YAML; `load_recipe` on it gives an equal recipe."""
    lines: list[str] = []
    values = recipe.model_dump(mode="json")
    for name, field in all_fields().items():
        *sections, key = name.split(".")
        indent = "  " * len(sections)
        if field.section:
            lines += ["", *_comment(field.description, indent), f"{indent}{key}:"]
            continue
        value: Any = values
        for part in name.split("."):
            value = value[part]
        lines += _comment(_explain(field), indent)
        lines.append(f"{indent}{key}: {one_line(value)}{_fraction(value)}")
    return "\n".join(lines) + "\n"


def _explain(field: Field) -> str:
    default = "" if field.required else f" Default {one_line(_plain(field.default))}."
    return f"{field.description}{default} Allowed: {field.allowed}."


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _fraction(value: Any) -> str:
    """A remark where a value is a whole number of grey levels."""
    if not isinstance(value, float) or not 0 < value < 1:
        return ""
    levels = round(value * 255)
    return f"  # {levels}/255" if levels / 255 == value else ""

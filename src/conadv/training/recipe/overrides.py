"""Settings from the command line: ``optimizer.lr=10`` on top of a recipe."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from conadv.errors import RecipeError
from conadv.training.recipe._yaml import parse_yaml
from conadv.training.recipe.fields import all_fields

_ALTERNATIVES = {"train.epochs": "train.steps", "train.steps": "train.epochs"}
"""Of each pair exactly one is set: giving one takes back the other."""


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's nested values with the overrides put in.

    Args:
        values: as read from YAML; not changed.
        overrides: ``dotted.name=value``, the value in YAML. The last one of a name counts.

    Raises:
        RecipeError: one is malformed, or sets a whole section; all such are listed.
    """
    values = copy.deepcopy(values)
    parsed: dict[str, Any] = {}
    problems: list[str] = []
    for override in overrides:
        try:
            name, value = _parse(override)
        except RecipeError as error:
            problems.append(str(error))
        else:
            parsed[name] = value
    if problems:
        raise RecipeError("\n".join(problems))
    for name, value in parsed.items():
        _put(values, name, value)
        other = _ALTERNATIVES.get(name)
        if other is not None and value is not None and other not in parsed:
            _put(values, other, None)
    return values


def _parse(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name or not all(name.split(".")):
        raise RecipeError(
            f"{override!r}: an override is dotted.name=value, such as optimizer.lr=10."
        )
    if not text.strip():
        raise RecipeError(f"{override!r}: give a value after the equals sign; null for none.")
    field = all_fields().get(name)
    if field is not None and field.section:
        raise RecipeError(f"{override!r}: {name} is a section; set its fields one by one.")
    return name, parse_yaml(text, f"override {override!r}")


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if not isinstance(inner, dict):
            inner = place[section] = {}
        place = inner
    place[key] = value

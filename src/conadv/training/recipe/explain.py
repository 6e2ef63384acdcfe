"""What is wrong with a recipe, in sentences: what was given, what is allowed, what to do."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from conadv.training.recipe.fields import all_fields, children, nearest_fields


def explain(error: ValidationError) -> list[str]:
    """One sentence or two per problem, each beginning with the dotted name of the field."""
    found: list[str] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "recipe_problems":
            found.extend(detail["ctx"]["problems"])
        else:
            found.append(_sentence(detail))
    return list(dict.fromkeys(found))


def _sentence(detail: ErrorDetails) -> str:
    name = _dotted(detail["loc"])
    if detail["type"] == "extra_forbidden" or name not in all_fields():
        return _unknown(name)
    field = all_fields()[name]
    if detail["type"] == "missing":
        return f"{name} is missing. {field.description} Allowed: {field.allowed}."
    if field.section and detail["type"] == "value_error":  # its fields do not go together
        return f"{name}: {detail['ctx']['error']}."
    if field.section:
        return (
            f"{name}={_shown(detail['input'])}: {name} is a section; give its fields below it: "
            f"{', '.join(children(name))}."
        )
    reason = ""
    if detail["type"] == "value_error":
        reason = f" {detail['ctx']['error']}."
    return f"{name}={_shown(detail['input'])}:{reason} Allowed: {field.allowed}."


def _dotted(loc: tuple[int | str, ...]) -> str:
    """The longest part of an error's place that is the name of a field, or all of it."""
    parts = [str(part) for part in loc]
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in all_fields() and not (all_fields()[name].section and length < len(parts)):
            return name
    return ".".join(parts)


def _unknown(name: str) -> str:
    section = name.rpartition(".")[0]
    like = nearest_fields(name)
    hint = f" Did you mean {' or '.join(like)}?" if like else ""
    where = f" in {section}" if section else ""
    return f"{name}: no such field.{hint} Allowed{where}: {', '.join(children(section))}."


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

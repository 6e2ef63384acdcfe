"""A flat view of the schema: every field by its dotted name, with what is allowed for it."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from conadv.training.recipe._values import Points
from conadv.training.recipe.schema import Recipe

_SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "batch_size": "batch.global_batch",
    "wd": "optimizer.weight_decay",
    "warmup": "lr_schedule.warmup_epochs",
    "smoothing": "train.label_smoothing",
    "eps": "attack.epsilon",
    "group_size": "batch.norm_group",
    "dtype": "hardware.precision",
    "arch": "model.name",
}
"""Names that others use, for hints."""


@dataclass(frozen=True)
class Field:
    """One field of a recipe."""

    name: str
    """Dotted, such as ``optimizer.lr``."""
    description: str
    allowed: str
    """Type and range in words."""
    default: Any
    required: bool
    section: bool
    """Whether it is a section, whose fields follow."""
    free: bool
    """Whether it takes keys of any name, as ``model.options`` does."""


@cache
def all_fields() -> dict[str, Field]:
    """Every section and field of a recipe, in the order of the schema."""
    found: dict[str, Field] = {}
    _collect(Recipe, "", found)
    return found


def nearest(word: str, words: list[str], count: int = 3) -> list[str]:
    """The words most like `word`, best first; none if nothing is like it."""
    lower = {w.lower(): w for w in words}
    return [lower[w] for w in difflib.get_close_matches(word.lower(), lower, count, 0.6)]


def nearest_fields(dotted: str) -> list[str]:
    """Valid dotted names that `dotted` may have meant, best first."""
    fields = [name for name, field in all_fields().items() if not field.section]
    leaf = dotted.rpartition(".")[2]
    if leaf in _SYNONYMS:
        return [_SYNONYMS[leaf]]
    same_leaf = [name for name in fields if name.rpartition(".")[2] == leaf]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(fields)}
    like_leaf = [by_leaf[near] for near in nearest(leaf, list(by_leaf))]
    found = [*nearest(dotted, same_leaf), *same_leaf, *nearest(dotted, fields), *like_leaf]
    return list(dict.fromkeys(found))[:3]


def children(section: str) -> list[str]:
    """Names of the fields directly inside a section; "" is the recipe itself."""
    prefix = f"{section}." if section else ""
    names = [name.removeprefix(prefix) for name in all_fields() if name.startswith(prefix)]
    return [name for name in names if "." not in name]


def _collect(model: type[BaseModel], prefix: str, found: dict[str, Field]) -> None:
    for key, info in model.model_fields.items():
        name = prefix + key
        inner = _section(info.annotation)
        found[name] = Field(
            name=name,
            description=" ".join((info.description or "").split()),
            allowed="a section" if inner else _allowed(info),
            default=None if info.default is PydanticUndefined else info.default,
            required=info.is_required(),
            section=inner is not None,
            free=typing.get_origin(info.annotation) is dict,
        )
        if inner is not None:
            _collect(inner, f"{name}.", found)


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _allowed(info: FieldInfo) -> str:
    if isinstance(info.json_schema_extra, dict) and "allowed" in info.json_schema_extra:
        return str(info.json_schema_extra["allowed"])
    text, nullable = _in_words(info.annotation, info.metadata)
    limits = _limits(info)
    return text + (f" {limits}" if limits else "") + (", or null" if nullable else "")


def _in_words(annotation: Any, metadata: list[Any]) -> tuple[str, bool]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if Points in inner:
            return "a number from 0 to 1, or [[progress, value], ...] with both from 0 to 1", False
        return _in_words(inner[0], metadata)[0], len(inner) < len(arguments)
    if origin is typing.Annotated:
        return _in_words(arguments[0], metadata)
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments), False
    if origin is tuple:
        return "two numbers [a, b], each at least 0 and below 1", False
    if origin is dict:
        return "a mapping of names to values", False
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return words[annotation], False


def _limits(info: FieldInfo) -> str:
    limits: dict[str, Any] = {}
    for constraint in info.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(constraint, name, None) is not None:
                limits[name] = getattr(constraint, name)
        if getattr(constraint, "pattern", None) is not None:
            return f"that matches {constraint.pattern}"
    if "ge" in limits and "le" in limits:
        return f"from {limits['ge']} to {limits['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())

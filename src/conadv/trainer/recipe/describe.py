"""A flat view of the schema: every field by its dotted name, with what is allowed for it."""

import textwrap
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from conadv._words import did_you_mean, nearest
from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.values import Points
from conadv.trainer.recipe.yaml12 import one_line

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
    words: Literal["one", "several"] | None
    """Whether it is text, or a list of texts."""
    nullable: bool


@cache
def all_fields() -> dict[str, Field]:
    """Every section and field of a recipe, in the order of the schema."""
    found: dict[str, Field] = {}
    _collect(Recipe, "", found)
    return found


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
        kind = info.annotation
        inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        found[name] = Field(
            name=name,
            description=" ".join((info.description or "").split()),
            allowed="a section" if inner else _allowed(info),
            default=None if info.default is PydanticUndefined else info.default,
            required=info.is_required(),
            section=inner is not None,
            free=typing.get_origin(info.annotation) is dict,
            words=_words(info.annotation),
            nullable=type(None) in typing.get_args(info.annotation),
        )
        if inner is not None:
            _collect(inner, f"{name}.", found)


def _words(annotation: Any) -> Literal["one", "several"] | None:
    """Whether a type is of texts alone, null apart."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _words(inner[0]) if len(inner) == 1 else None
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is tuple and arguments[1:] == (...,) and _words(arguments[0]):
        return "several"
    if origin is Literal:
        return "one" if all(isinstance(argument, str) for argument in arguments) else None
    return "one" if annotation is str else None


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


def explain(error: ValidationError) -> list[str]:
    """One sentence or two per problem, each beginning with the dotted name of the field."""
    return list(dict.fromkeys(_sentence(detail) for detail in error.errors(include_url=False)))


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
        reason = f" {detail['ctx']['error']}"
        reason += "" if reason[-1] in ".?" else "."
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
    hint = did_you_mean(like)
    where = f" in {section}" if section else ""
    return f"{name}: no such field.{hint} Allowed{where}: {', '.join(children(section))}."


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def dump_recipe(recipe: Recipe, width: int = 100) -> str:
    """The whole recipe as YAML with comments of a width; `load_recipe` gives an equal recipe."""
    lines: list[str] = []
    values = recipe.model_dump(mode="json")
    for name, field in all_fields().items():
        *sections, key = name.split(".")
        indent = "  " * len(sections)
        if field.section:
            lines += ["", *_comment(field.description, indent, width), f"{indent}{key}:"]
            continue
        value: Any = values
        for part in name.split("."):
            value = value[part]
        usual = "" if field.required else f" Default {one_line(_plain(field.default))}."
        lines += _comment(f"{field.description}{usual} Allowed: {field.allowed}.", indent, width)
        lines.append(f"{indent}{key}: {one_line(value)}{_fraction(value)}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _comment(text: str, indent: str, width: int) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=start,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _fraction(value: Any) -> str:
    """A remark where a value is a whole number of grey levels."""
    if not isinstance(value, float) or not 0 < value < 1:
        return ""
    levels = round(value * 255)
    return f"  # {levels}/255" if levels / 255 == value else ""

"""Where recipes come from: the package's own by name, anybody's by path."""

import copy
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conadv._numbers import largest_divisor
from conadv._words import did_you_mean, nearest
from conadv.errors import RecipeError
from conadv.trainer.recipe.describe import all_fields, explain
from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.yaml12 import parse_yaml


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return list(_shipped_names())


@cache
def _shipped_names() -> tuple[str, ...]:
    names = [file.name for file in (resources.files("conadv") / "recipes").iterdir()]
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml")))


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, checked: bool = True
) -> Recipe:
    """Read a recipe and check all of it.

    A file may begin from another recipe: ``extends: NAME``, or a path beside it; its own values
    go on top, field by field.

    Args:
        name_or_path: a name from `recipe_names`, the path of a YAML file, or a run folder.
        overrides: ``dotted.name=value``, applied before the checks; see `apply_overrides`.
        checked: False leaves out whether fields go together, which takes torch.

    Raises:
        RecipeError: there is no such recipe, it is not YAML, or something in it is impossible.
            The message lists every problem with what was given, what is allowed and what to do.
    """
    values, what = _values(str(name_or_path), ())
    return make_recipe(values, overrides, what, checked=checked)


def _values(name: str, extended: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """What a file holds, on top of the recipe that it extends; and what to call it in messages."""
    values, what = _read(name)
    if not isinstance(values, dict):
        raise RecipeError(f"{what} does not hold a recipe: names and values are needed, as YAML.")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        values = {"name": path.stem, **values}
    base = values.pop("extends", None)
    if base is None:
        return values, what
    if not isinstance(base, str):
        raise RecipeError(f"{what}: extends={base!r}: give the name or the path of one recipe.")
    if base in (*extended, name):
        raise RecipeError(
            f"{what} extends {base}, which extends it again: one of them must stand on its own."
        )
    beside = path.parent / base
    if base not in recipe_names() and beside.is_file():
        base = str(beside)
    return _merged(_values(base, (*extended, name))[0], values), what


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged field by field, anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def make_recipe(
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    what: str = "recipe",
    *,
    checked: bool = True,
) -> Recipe:
    """A recipe from nested values; arguments and errors are those of `load_recipe`."""
    try:
        recipe = Recipe.model_validate(apply_overrides(values, overrides))
    except ValidationError as error:
        found = explain(error)
    else:
        if not checked:
            return recipe
        from conadv.trainer.recipe.checks import problems  # brings torch

        found = problems(recipe)
    if not found:
        return recipe
    if len(found) == 1:
        raise RecipeError(f"{what}: {found[0]}")
    listed = "".join(f"\n  - {problem}" for problem in found)
    raise RecipeError(f"{what}: {len(found)} problems:{listed}")


def change_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with overrides put on top, checked again; raises as `load_recipe` does."""
    return make_recipe(recipe.model_dump(mode="json"), overrides, recipe.name)


@cache
def _shipped_values(name: str) -> Any:
    text = (resources.files("conadv") / "recipes" / f"{name}.yaml").read_text("utf-8")
    return parse_yaml(text, f"recipe {name}")


def _read(name: str) -> tuple[Any, str]:
    """What a file holds by itself, and what to call it in messages."""
    path = Path(name)
    if name in _shipped_names():
        return copy.copy(_shipped_values(name)), f"recipe {name}"
    if (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read as text: {error}.") from error
        return parse_yaml(text, str(path)), str(path)
    if path.suffix in (".yaml", ".yml") or path.is_dir():
        what = "a folder without recipe.yaml" if path.is_dir() else "no such file"
        raise RecipeError(f"{path}: {what}. Give the path of a recipe, or a name. {_KNOWN}")
    hint = did_you_mean(nearest(name, recipe_names()))
    raise RecipeError(
        f"{name!r} is no recipe.{hint} Give a path that ends in .yaml, or a name. {_KNOWN}."
    )


_KNOWN = "All names: conadv recipes list"


_ALTERNATIVES = {"train.epochs": "train.steps", "train.steps": "train.epochs"}
"""Pairs of which exactly one is set: giving one takes back the other."""


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's nested values with the overrides put in.

    Args:
        values: as read from YAML; not changed.
        overrides: ``dotted.name=value``: text as it stands where the field is text, otherwise
            YAML. The last one of a name counts.

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
    if field is None or field.words is None or (field.nullable and text.strip() == "null"):
        return name, parse_yaml(text, f"override {override!r}")
    if field.words == "one":
        return name, _literal(text)
    listed = text.strip().removeprefix("[").removesuffix("]")
    return name, [_literal(part.strip()) for part in listed.split(",") if part.strip()]


def _literal(text: str) -> str:
    """Text as it stands: ``#``, ``*`` and leading zeros mean nothing. One pair of quotes goes."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    found = parse_yaml(text, "quoted text") if quoted else text
    return found if isinstance(found, str) else text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if not isinstance(inner, dict):
            inner = place[section] = {}
        place = inner
    place[key] = value


def resized(recipe: Recipe, global_batch: int | None, micro_batch: int | None = None) -> Recipe:
    """The recipe at another global batch or micro-batch.

    The micro-batch and the normalisation group stay where they divide the new sizes. Otherwise
    they become the largest divisors that are not larger; nothing else of the recipe changes, not
    even the learning rate, unless its ``optimizer.lr_rule`` says so.

    Args:
        recipe: Any.
        global_batch: Images per weight update; None keeps the recipe's.
        micro_batch: Images per forward pass; None as described.

    Raises:
        RecipeError: A size below 1, or a micro-batch that does not divide the global batch.
    """
    total = recipe.batch.global_batch if global_batch is None else global_batch
    for name, value in (("--batch", total), ("--micro-batch", micro_batch)):
        if value is not None and value < 1:
            raise RecipeError(f"{name} {value}: give a number of images from 1.")
    micro = micro_batch or largest_divisor(total, recipe.micro_batch)
    group = largest_divisor(micro, recipe.norm_group)
    sizes = {"global_batch": total, "micro_batch": micro, "norm_group": group}
    return change_recipe(recipe, [f"batch.{name}={value}" for name, value in sizes.items()])

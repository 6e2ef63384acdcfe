"""What differs between two recipes."""

from __future__ import annotations

from typing import Any

from conadv.training.recipe._yaml import one_line
from conadv.training.recipe.schema import Recipe

WITHOUT_EFFECT = (
    "description",
    "source",
    "published",
    "verified",
    "data.root",
    "data.files.test_root",
    "data.files.workers",
    "checkpoint",
)
"""Fields and sections that do not change what a run computes."""


def differing_fields(before: Recipe, now: Recipe, *, everything: bool = False) -> list[str]:
    """Fields with different values, each as ``optimizer.lr (was 1.0, now 10.0)``.

    Args:
        before: the one recipe.
        now: the other one.
        everything: also fields without effect on what a run computes, such as the description or
            how often a checkpoint is written.
    """
    old, new = flat(before), flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not everything:
        names = [n for n in names if not n.startswith(tuple(f"{w}." for w in WITHOUT_EFFECT))]
        names = [n for n in names if n not in WITHOUT_EFFECT]
    return [
        f"{name} (was {one_line(old.get(name))}, now {one_line(new.get(name))})" for name in names
    ]


def flat(recipe: Recipe) -> dict[str, Any]:
    """All values by dotted name, in plain types."""
    found: dict[str, Any] = {}

    def walk(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                found[prefix + key] = value

    walk("", recipe.model_dump(mode="json"))
    return found

"""What is impossible about how a recipe updates its weights."""

from collections.abc import Iterator
from typing import Any

from conadv._words import import_named, is_path
from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.updates import (
    BESIDE,
    OPTIMIZERS,
    Refusal,
    beside,
    choices,
    in_use,
    optimizer_of,
    value,
)


def update_problems(recipe: Recipe) -> Iterator[str]:
    """Everything that is impossible about how a recipe updates its weights."""
    yield from _optimizer(recipe)
    for switch in dict.fromkeys(thing.switch for thing in BESIDE):
        (thing, *_), on = choices(switch), " or ".join(_shown(b.on) for b in choices(switch))
        for name in thing.takes if beside(recipe, switch) is None else ():
            given, usual = value(recipe, name), _usual(recipe, name)
            if given != usual:
                yield (
                    f"{name}={given:g} with {thing.off}: {thing.without}. Set {switch}={on}, "
                    f"or leave {name} at {usual:g}."
                )
    yield from refused(
        recipe,
        f"optimizer.name={recipe.optimizer.name}",
        optimizer_of(recipe).refuses,
        "another optimizer.name",
    )
    for thing in in_use(recipe):
        given = f"{thing.switch}={_shown(thing.on)}"
        yield from refused(recipe, given, thing.refuses, thing.off)
    if recipe.optimizer.variance_reduction:
        yield from _variance_reduction(recipe)


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.optimizer
    fields = ("lr", "weight_decay", "betas", "eps", *optimizer_of(recipe).takes)
    for name in fields:
        if name in optimizer.options:
            yield (
                f"optimizer.options has {name}, which is a field: set optimizer.{name}="
                f"{_shown(optimizer.options[name])} instead."
            )
    if is_path(optimizer.name):
        try:
            import_named(optimizer.name)
        except ValueError as error:
            yield f"optimizer.name={optimizer.name!r}: {error}."
    if optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov=true with optimizer.momentum=0: give a momentum above 0."


def _variance_reduction(recipe: Recipe) -> Iterator[str]:
    given, off = "optimizer.variance_reduction=true", "optimizer.variance_reduction=false"
    if not optimizer_of(recipe).variance_reduced:
        there = [name for name, known in OPTIMIZERS.items() if known.variance_reduced]
        forms = " and ".join(f"VR-{name.upper()}" for name in there)
        yield (
            f"{given} with optimizer.name={recipe.optimizer.name}: there is {forms} here. Set "
            f"optimizer.name={' or '.join(there)}, or {off}."
        )
    total, micro = recipe.batch.global_batch, recipe.micro_batch
    if micro <= total and total // micro < 2:
        yield (
            f"{given} with one micro-batch of {micro} images per step: the noise is measured "
            "between the gradients of at least two. Give batch.micro_batch, at most "
            f"{total // 2}."
        )


def refused(recipe: Recipe, given: str, refuses: tuple[Refusal, ...], off: str) -> Iterator[str]:
    """What a recipe has that something in it cannot be used with.

    Args:
        recipe: Any.
        given: That which refuses, as the recipe has it.
        refuses: What it refuses.
        off: What to set instead of it.
    """
    for refusal in refuses:
        if refusal.when(value(recipe, refusal.field)):
            name = refusal.field.replace("method.kind", "method.schedule")
            shown = _shown(value(recipe, name))
            yield f"{given} with {name}={shown}: {refusal.why}. Set {refusal.instead}, or {off}."


def _usual(recipe: Recipe, name: str) -> Any:
    section, _, key = name.partition(".")
    return type(getattr(recipe, section)).model_fields[key].default


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Translate a recipe into what the planner takes: it knows nothing of recipes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conadv.errors import PlanError, RecipeError, doing
from conadv.lab.planning import Job, Loader, Method, WeightMethod
from conadv.schedules import SCHEDULES, VARIANTS
from conadv.trainer.input.random_images import images_of
from conadv.trainer.recipe.updates import optimizer_of

if TYPE_CHECKING:
    from conadv.lab.planning import Network
    from conadv.trainer.recipe import Recipe


def check_parallel(recipe: Recipe) -> None:
    """Raise PlanError for what the model of a step does not cover."""
    if recipe.hardware.parallel == "fsdp":
        raise PlanError(
            "hardware.parallel=fsdp: the planner's model is that of whole weights on every "
            "device. Plan with hardware.parallel=ddp."
        )


def count_network(recipe: Recipe) -> Network:
    """The recipe's network, its normalisation split, at its resolution and precision."""
    import torch

    from conadv import split_norms
    from conadv.lab.planning import count
    from conadv.trainer.models.zoo import build_model

    shape, classes, _ = images_of(recipe)
    classes = recipe.model.num_classes or classes
    settings = recipe.model.model_copy(update={"pretrained": False})  # weights do not matter
    model = build_model(settings, shape[0], classes)
    if recipe.method.kind.makes_copies:
        model = split_norms(model, statistics=recipe.norm.statistics)
    lower = recipe.hardware.precision != "fp32"
    with doing(f"counting what a pass of model.name={settings.name} costs"):
        return count(model, shape, torch.bfloat16 if lower else torch.float32)


def job_of(recipe: Recipe, loader: Loader) -> Job:
    """Sizes and length."""
    _, _, total = images_of(recipe)
    optimizer = optimizer_of(recipe)
    states = optimizer.buffers(recipe.optimizer)
    longer = recipe.train.steps_factor
    epochs, steps = recipe.train.epochs, recipe.train.steps
    return Job(
        global_batch=recipe.batch.global_batch,
        micro_batch=recipe.micro_batch,
        norm_group=recipe.norm_group,
        train_images=total,
        epochs=None if epochs is None else epochs * longer,
        steps=None if steps is None else round(steps * longer),
        optimizer_states=states,
        update_passes=optimizer.passes(states),
        order_tail=recipe.data.order_tail,
        averaged=recipe.train.ema_decay is not None,
        loader=loader if recipe.data.dataset == "files" else Loader(),
    )


def own_schedule(recipe: Recipe) -> str:
    """The recipe's schedule, as the planner calls it."""
    weights, of_images = recipe.weights, _of_images(recipe)
    if not weights.on:
        return of_images
    own = f"{weights.schedule}{'-budget' if weights.budget == 'fixed' else ''} weights"
    return f"{own} + {of_images}" if recipe.method.kind.makes_copies else own


def _of_images(recipe: Recipe) -> str:
    method = recipe.method
    return method.make().variant if method.schedule in SCHEDULES else method.schedule


def methods_of(recipe: Recipe) -> list[Method]:
    """The recipe's schedule, and beside it the others with their usual share of copies.

    A share that changes over training counts with its largest value. Controls are left out.
    """
    method, attack, own = recipe.method, recipe.attack, _of_images(recipe)
    usual = Method(
        attack_steps=attack.steps,
        packed=attack.norm == "linf" and attack.steps == 1,
        views=int(method.view != "none"),
    )
    found = [
        replace(usual, schedule=name, share=kind.default_share(**settings))
        for name, (kind, settings) in VARIANTS.items()
        if name != own and not kind.control
    ]
    points = method.share
    share = points if isinstance(points, float) else max(value for _, value in points)
    mine = replace(usual, schedule=own, share=share, settings=method.arguments)
    place = list(VARIANTS).index(own) if own in VARIANTS else len(found)
    found.insert(place, mine)
    if not recipe.weights.on:
        return found
    return [
        *found,
        WeightMethod(
            own_schedule(recipe),
            views=usual.views,
            weights=recipe.weights.make(),
            beside=mine if method.kind.makes_copies else None,
            parameters=recipe.weights.parameters,
        ),
    ]


def measured_images_per_second(path: Path, recipe: Recipe) -> float:
    """Throughput of ordinary training, from a file of ``conadv bench steps --json``.

    Raises:
        RecipeError: it is no such file, or of another network or resolution.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
        model, size, batch = settings["model"], settings["image_size"], settings["batch"]
        row = next(row for row in found["rows"] if row["schedule"] == "vanilla")
        seconds = float(row["step_seconds_median"])
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise RecipeError(
            f"--measured {path}: not a file of conadv bench steps ({error!r}). Make one with "
            f"conadv bench steps --model {recipe.model.name} --json FILE."
        ) from error
    (_, height, _), _, _ = images_of(recipe)
    if (model, size) != (recipe.model.name, height):
        raise RecipeError(
            f"--measured {path} has {model} at {size} pixels, the recipe trains "
            f"{recipe.model.name} at {height}. Measure that: conadv bench steps --model "
            f"{recipe.model.name} --image-size {height} --batch {recipe.micro_batch} --json FILE."
        )
    return float(batch) / seconds

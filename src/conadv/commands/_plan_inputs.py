"""From a recipe to what the planner takes: it knows nothing of recipes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conadv.errors import PlanError, RecipeError
from conadv.lab.planning import SCHEDULES, Job, Loader, Method
from conadv.trainer.input.random_images import images_of

if TYPE_CHECKING:
    from conadv.lab.planning import Network
    from conadv.trainer.recipe import Recipe

_STATES = {"lars": 1, "sgd": 1, "lamb": 2}
"""Buffers of an optimizer as large as the weights; of others two, as Adam has."""


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
    if recipe.method.schedule != "vanilla":
        model = split_norms(model, statistics=recipe.norm.statistics)
    lower = recipe.hardware.precision != "fp32"
    return count(model, shape, torch.bfloat16 if lower else torch.float32)


def job_of(recipe: Recipe, loader: Loader) -> Job:
    """Sizes and length."""
    _, _, total = images_of(recipe)
    name = recipe.optimizer.name
    states = 0 if name == "sgd" and recipe.optimizer.momentum == 0 else _STATES.get(name, 2)
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
        averaged=recipe.train.ema_decay is not None,
        loader=loader if recipe.data.dataset == "files" else Loader(),
    )


def own_schedule(recipe: Recipe) -> str:
    """The recipe's schedule, as the planner calls it."""
    method = recipe.method
    fixed = method.schedule == "recycled" and method.budget == "fixed"
    return "recycled-budget" if fixed else method.schedule


def methods_of(recipe: Recipe) -> list[Method]:
    """The recipe's schedule, and beside it the others with their usual share of copies.

    A share that changes over training counts with its largest value.
    """
    method, attack = recipe.method, recipe.attack
    packed = attack.norm == "linf" and attack.steps == 1
    usual = Method(
        attack_steps=attack.steps,
        tau=max(1, method.tau),
        packed=packed,
        views=int(method.view != "none"),
    )
    found = []
    for name in SCHEDULES:
        share = 0.25 if name == "recycled-budget" else 1.0
        if name == own_schedule(recipe):
            points = method.share
            share = points if isinstance(points, float) else max(value for _, value in points)
            found.append(replace(usual, schedule=name, share=share, refine=method.refine > 1))
        elif name != "noise":
            found.append(replace(usual, schedule=name, share=share))
    return found


def measured_images_per_second(path: Path, recipe: Recipe) -> float:
    """Of ordinary training, from a file of ``conadv bench steps --json``.

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

"""From a recipe to its optimizer and learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conadv import optim
from conadv.errors import RecipeError
from conadv.training.recipe import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate; bias and norm without decay and trust ratio.

    Raises:
        RecipeError: The optimizer does not take these settings.
    """
    settings = recipe.optimizer
    groups: Any = optim.param_groups(model, settings.weight_decay)
    options: dict[str, Any] = {"lr": recipe.peak_lr}
    if settings.betas is not None:
        options["betas"] = settings.betas
    if settings.eps is not None:
        options["eps"] = settings.eps
    if settings.name in ("lars", "sgd"):
        options |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
    if settings.name == "lars":
        options["trust_coefficient"] = settings.trust_coefficient
        options["lr_in_momentum"] = settings.lr_in_momentum
    own: dict[str, Any] = {
        "lars": optim.LARS,
        "lamb": optim.LAMB,
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
    }
    kind: Any = own.get(settings.name) or getattr(torch.optim, settings.name)
    try:
        optimizer: torch.optim.Optimizer = kind(groups, **options | settings.options)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"optimizer.name={settings.name} does not take these settings: {error}. Correct "
            "optimizer.options, optimizer.betas or optimizer.eps."
        ) from error
    return optimizer


def learning_rate_factor(recipe: Recipe, train_images: int) -> Callable[[int], float]:
    """Factor on the peak learning rate as a function of the steps done."""
    total, warmup = recipe.total_steps(train_images), recipe.warmup_steps(train_images)
    settings = recipe.lr_schedule
    if settings.decay == "poly":
        return lambda s: optim.warmup_poly(s, total, warmup, settings.power, settings.end_factor)
    if settings.decay == "cosine":
        return lambda s: optim.warmup_cosine(s, total, warmup, settings.end_factor)
    return lambda s: optim.warmup_poly(s, total, warmup, 1.0, 1.0)

"""From a recipe to what updates the weights: optimizer, learning-rate schedule, SAM, VR-LARS."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv import optim
from conadv._words import import_named
from conadv.errors import RecipeError
from conadv.optim.groups import classifier_apart
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.updates import beside, optimizer_of


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate; bias and norm without decay and trust ratio.

    With Muon the classifier, which it is not meant for, goes to AdamW like them, but decayed.

    Raises:
        RecipeError: The optimizer does not take these settings.
    """
    settings, known = recipe.optimizer, optimizer_of(recipe)
    groups: Any = optim.param_groups(model, settings.weight_decay)
    if known.classifier_apart:
        groups = classifier_apart(groups, model)
    options: dict[str, Any] = {"lr": recipe.peak_lr}
    options |= {name: getattr(settings, name) for name in known.takes}
    given = {"betas": settings.betas, "eps": settings.eps}
    options |= {name: value for name, value in given.items() if value is not None}
    try:
        optimizer: torch.optim.Optimizer = import_named(known.make)(
            groups, **options | settings.options
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"optimizer.name={settings.name} does not take these settings: {error}. Correct "
            "optimizer.options, optimizer.betas or optimizer.eps."
        ) from error
    return optimizer


def make_sam(recipe: Recipe, parameters: Iterable[Tensor]) -> optim.SAM | None:
    """What perturbs the weights, or None."""
    chosen = beside(recipe, "method.sam")
    return None if chosen is None else import_named(chosen.make)(parameters, recipe.method.rho)


def make_variance_reduction(
    recipe: Recipe, parameters: Iterable[Tensor], ranks: int
) -> optim.VarianceReduction | None:
    """What scales gradients by their signal-to-noise ratio over all micro-batches, or None."""
    settings = recipe.optimizer
    if not settings.variance_reduction:
        return None
    return optim.VarianceReduction(
        parameters,
        settings.gsnr_gamma,
        settings.gsnr_momentum,
        all_reduce=dist.all_reduce if ranks > 1 else None,
    )


def learning_rate_factor(recipe: Recipe, train_images: int) -> Callable[[int], float]:
    """Factor on the peak learning rate as a function of the steps done."""
    given = recipe.lr_schedule
    total, warmup = recipe.total_steps(train_images), recipe.warmup_steps(train_images)
    return optim.decay_factor(given.decay, total, warmup, given.power, given.end_factor)

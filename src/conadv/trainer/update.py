"""From a recipe to what updates the weights: optimizer, learning-rate schedule, SAM, VR-LARS."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv import optim
from conadv.errors import RecipeError
from conadv.trainer.recipe import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate; bias and norm without decay and trust ratio.

    With Muon the classifier, which it is not meant for, goes to AdamW like them, but decayed.

    Raises:
        RecipeError: The optimizer does not take these settings.
    """
    settings = recipe.optimizer
    groups: Any = optim.param_groups(model, settings.weight_decay)
    if settings.name == "muon":
        groups = _without_classifier(groups, model)
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
        "muon": optim.Muon,
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


def _without_classifier(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The last linear layer's weight in a group of its own, which Muon leaves to AdamW."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    if not linear:
        return groups
    weights, rest = groups
    last = linear[-1].weight
    others = [p for p in weights["params"] if p is not last]
    return [{**weights, "params": others}, {**weights, "params": [last], "adapt": False}, rest]


def make_sam(recipe: Recipe, parameters: Iterable[Tensor]) -> optim.SAM | None:
    """What perturbs the weights, or None."""
    kinds = {"sam": optim.SAM, "async": optim.AsyncSAM}
    kind = kinds.get(recipe.method.sam)
    return None if kind is None else kind(parameters, recipe.method.rho)


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
    total, warmup = recipe.total_steps(train_images), recipe.warmup_steps(train_images)
    settings = recipe.lr_schedule
    if settings.decay == "poly":
        return lambda s: optim.warmup_poly(s, total, warmup, settings.power, settings.end_factor)
    if settings.decay == "cosine":
        return lambda s: optim.warmup_cosine(s, total, warmup, settings.end_factor)
    return lambda s: optim.warmup_poly(s, total, warmup, 1.0, 1.0)

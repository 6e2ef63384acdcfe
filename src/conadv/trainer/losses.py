"""The loss of training, by its name in a recipe."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conadv._words import import_named
from conadv.attack.attack import Criterion
from conadv.errors import RecipeError, doing
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.sections import LOSS_NAMES


class ClassificationLoss(nn.Module):
    """A loss per image, averaged over the images, each times the weight of its class.

    Unlike torch's weighted mean it divides by the number of images, not by the sum of their
    weights: so it does not depend on how a batch is cut into micro-batches. With labels that are
    probabilities (mixup) an image's weight is the mean of its classes' weights.

    Args:
        weight: Of each class, shape (K,); None: 1.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the images.

        Args:
            logits: (N, K).
            labels: (N,) whole numbers, or (N, K) probabilities.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):  # autocast knows not all of them
            logits = logits.float()
        losses = self.per_image(logits, labels)
        if self.weight is not None:
            weight = self.weight.to(losses.dtype)
            losses = losses * (labels @ weight if labels.ndim == 2 else weight[labels])
        return losses.mean()

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, (N,)."""
        raise NotImplementedError

    def targets(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Smoothed probabilities, (N, K)."""
        classes = logits.shape[1]
        one_hot = labels if labels.ndim == 2 else F.one_hot(labels, classes)
        smoothing = self.label_smoothing
        return one_hot.to(logits.dtype) * (1 - smoothing) + smoothing / classes


class CrossEntropy(ClassificationLoss):
    """Cross-entropy of the softmax."""

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, (N,)."""
        smoothing = self.label_smoothing
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


class BinaryCrossEntropy(ClassificationLoss):
    """Each class against the rest, by a sigmoid of its own (Wightman et al., arXiv 2110.00476).

    Averaged over the classes.
    """

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, (N,)."""
        targets = self.targets(logits, labels)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.mean(dim=1)


class Focal(ClassificationLoss):
    """Cross-entropy that counts less the surer the network is (Lin et al., arXiv 1708.02002).

    sum over classes k of -t_k (1 - p_k)^gamma log p_k.

    Args:
        weight: Of each class, shape (K,); None: 1.
        label_smoothing: Of the labels t.
        gamma: At least 0, which is cross-entropy.
    """

    def __init__(
        self, weight: Tensor | None = None, label_smoothing: float = 0.0, gamma: float = 2.0
    ) -> None:
        super().__init__(weight, label_smoothing)
        if not gamma >= 0:
            raise ValueError(f"gamma={gamma}: give a number of at least 0")
        self.gamma = gamma

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, (N,)."""
        logs = logits.log_softmax(dim=1)
        # Not 1 - exp(logs), which is 0 for a sure class: its power has no gradient there.
        others = (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).tiny)
        return -(self.targets(logits, labels) * others**self.gamma * logs).sum(dim=1)


LOSSES: dict[str, type[ClassificationLoss]] = dict(
    zip(LOSS_NAMES, (CrossEntropy, BinaryCrossEntropy, Focal), strict=True)
)
"""Losses by ``train.loss``."""


def make_criterion(
    recipe: Recipe, classes: int, labels: Callable[[], Tensor], device: torch.device
) -> Criterion:
    """The loss that a recipe trains with.

    Args:
        recipe: Its section ``train``.
        classes: Outputs of the network.
        labels: Gives the labels of the training images, (N,); asked for balanced weights alone.
        device: Where it is computed.

    Raises:
        RecipeError: No such loss, options that it does not take, or weights that are not one per
            class.
    """
    with doing(f"making the loss (train.loss={recipe.train.loss})"):
        return _make(recipe, classes, labels, device)


def _make(
    recipe: Recipe, classes: int, labels: Callable[[], Tensor], device: torch.device
) -> Criterion:
    settings = recipe.train
    options: dict[str, Any] = dict(settings.loss_options)
    kind: Any = LOSSES.get(settings.loss)
    if kind is not None:
        weight = class_weights(settings.class_weights, classes, labels)
        if kind is CrossEntropy and weight is None and not options:
            return nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        options |= {"weight": weight, "label_smoothing": settings.label_smoothing}
    else:
        kind = import_named(settings.loss)
    try:
        if isinstance(kind, type):
            made: Any = kind(**options)
            return made.to(device) if isinstance(made, nn.Module) else made
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"train.loss={settings.loss} does not take train.loss_options="
            f"{settings.loss_options}: {error}."
        ) from error
    if isinstance(kind, nn.Module):
        kind = kind.to(device)
    return partial(kind, **options) if options else kind


def class_weights(
    given: Literal["balanced"] | tuple[float, ...] | None,
    classes: int,
    labels: Callable[[], Tensor],
) -> Tensor | None:
    """Weight of each class, (K,) float32.

    Balanced ones are N / (K n_k) with n_k of N images in class k: their mean over the images is 1.
    A class without images, of which the loss never sees one, has weight 1.

    Raises:
        RecipeError: Not one number per class.
    """
    if given is None:
        return None
    if given == "balanced":
        counts = labels().bincount(minlength=classes).to(torch.float64)
        weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
        return weights.where(counts > 0, 1.0).float()
    if len(given) != classes:
        raise RecipeError(
            f"train.class_weights has {len(given)} numbers, and there are {classes} classes: give "
            "one for each, in the order of the classes, or balanced."
        )
    return torch.tensor(given)

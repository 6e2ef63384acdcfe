"""Whether an old gradient of the weights still points uphill: whole, in parts, of other images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.attack.forward import forked_rng, training_mode
from conadv.branches import route
from conadv.branches.buffers import frozen_statistics
from conadv.lab.analysis.passes import Batches, check_repeatable
from conadv.weights.space import WeightSpace


@dataclass(frozen=True)
class GradientAgreement:
    """Cosines of old and fresh gradients of the weights, means over micro-batches and layers."""

    whole: float
    """Cosine of a micro-batch's gradient and that of the same images later."""
    shared: float
    """Cosine of the part that all micro-batches share: their mean."""
    own: float | None
    """Cosine of the rest, each micro-batch's own part; None of a single micro-batch."""
    other: float | None
    """Cosine of a micro-batch's old gradient and the fresh one of the micro-batch after it."""
    moved: float
    """Length of the way between the two sets of weights, over that of the older ones."""
    micro_batches: int


def gradient_agreement(
    old: nn.Module,
    fresh: nn.Module,
    batches: Batches,
    criterion: Criterion = cross_entropy,
    *,
    branch: str | None = None,
    seed: int = 0,
) -> GradientAgreement:
    """Compare gradients of the same micro-batches at two sets of weights.

    Layer-normalised: a cosine is the mean of those of the layers, as copies of weights move each
    layer by a length of its own. Layers are the parameters of two or more dimensions. Both models
    are in training mode, with the same dropout, and leave their buffers as they are.

    Args:
        old: with the older weights.
        fresh: with the newer ones.
        batches: micro-batches (images standardised, labels), gone through twice.
        criterion: of training, the mean over the images it is given.
        branch: normalisation branch of the passes; None: the first.
        seed: of dropout.

    Raises:
        ValueError: there are no micro-batches, or `batches` can be gone through once only.
    """
    check_repeatable(batches)
    sides = [_Side(model, criterion, branch, seed) for model in (old, fresh)]
    count = 0
    for number, (images, labels) in enumerate(batches):
        for side in sides:
            side.mean += side.gradient(number, images, labels)
        count += 1
    if count == 0:
        raise ValueError("There are no images to take gradients of: give at least one batch.")
    for side in sides:
        side.mean /= count
    was, now = sides
    whole, own, other = 0.0, 0.0, 0.0
    first = before = torch.empty(0)
    for number, (images, labels) in enumerate(batches):
        one, two = (side.gradient(number, images, labels) for side in sides)
        whole += was.cosine(one, two)
        own += was.cosine(one - was.mean, two - now.mean)
        if number == 0:
            first = two
        else:
            other += was.cosine(before, two)
        before = one
    other += was.cosine(before, first)  # the one after the last is the first
    return GradientAgreement(
        whole=whole / count,
        shared=was.cosine(was.mean, now.mean),
        own=own / count if count > 1 else None,
        other=other / count if count > 1 else None,
        moved=_distance(was.space, now.space),
        micro_batches=count,
    )


class _Side:
    """One of the two models, and the mean of its gradients."""

    def __init__(
        self, model: nn.Module, criterion: Criterion, branch: str | None, seed: int
    ) -> None:
        self.space = WeightSpace(model, "matrices")
        self.mean = self.space.zeros(torch.float32)
        self._model = model
        self._criterion = criterion
        self._branch = branch
        self._seed = seed

    def gradient(self, number: int, images: Tensor, labels: Tensor) -> Tensor:
        """Gradient of one micro-batch, a vector of the space."""
        generator = torch.Generator(images.device).manual_seed(self._seed + number)
        model = self._model
        with training_mode(model), frozen_statistics(model), route(model, self._branch):
            with forked_rng(generator), torch.enable_grad():
                loss = loss_of(self._criterion(self._model(images), labels))
            found = torch.autograd.grad(loss, self.space.parameters, allow_unused=True)
        return self.space.vector(found, torch.float32)

    def cosine(self, one: Tensor, other: Tensor) -> float:
        """Mean over layers; those without a gradient are left out."""
        pairs = zip(self.space.views(one), self.space.views(other), strict=True)
        cosines = [cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=0.0) for a, b in pairs]
        return float(torch.stack(cosines).nanmean().nan_to_num(0.0))


def _distance(old: WeightSpace, fresh: WeightSpace) -> float:
    with torch.no_grad():
        way = [b - a for a, b in zip(old.parameters, fresh.parameters, strict=True)]
        lengths = [torch.stack(torch._foreach_norm(v)).norm() for v in (way, old.parameters)]
    return float(lengths[0] / lengths[1])

"""Passes over a set of images that the analyses share: loss, accuracy, gradient, displacement."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.branches import plain
from conadv.trainer.input.images import mean_loss

Batches = Iterable[tuple[Tensor, Tensor]]
"""(images (N, ...), labels (N, ...)), on the model's device, to be gone through more than once."""
Progress = Callable[[int, int | None], None]
"""A function that is told how much is done, and of how much if that is known."""
Direction = Mapping[str, Tensor]
"""One tensor per parameter name, in the parameter's shape."""


@dataclass(frozen=True)
class Score:
    """Mean over all images of a set."""

    loss: float
    accuracy: float | None
    """Fraction in [0, 1]; None where outputs are no class scores or labels no class numbers."""
    images: int


def silent(done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def check_repeatable(batches: Batches) -> None:
    """Raise ValueError for an iterator, which would be empty the second time."""
    if iter(batches) is batches:
        raise ValueError(
            f"batches is a {type(batches).__name__}, which can be gone through once only: give a "
            "list of (images, labels), or another object that starts anew in every loop."
        )


def evaluated(model: nn.Module, branch: str | None) -> nn.Module:
    """A copy to be measured and displaced: one branch, eval mode, gradients for all weights.

    Raises:
        ValueError: The model has branches, and none of that name.
    """
    copy = plain(model, branch).eval()
    for parameter in copy.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return copy


def score(model: nn.Module, batches: Batches, criterion: Criterion) -> Score:
    """Loss and accuracy of the model as it stands, in whatever mode it is.

    Raises:
        ValueError: There are no images, or the criterion does not return one number.
    """

    def summed(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = loss_of(criterion(outputs, labels))
        return loss.double() * len(labels)

    return Score(*mean_loss(model, batches, summed))


def mean_gradient(
    model: nn.Module, batches: Batches, criterion: Criterion
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over all images, and its gradient by parameter name, micro-batch by micro-batch."""
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    images, loss_sum = 0, 0.0
    for inputs, labels in batches:
        with torch.enable_grad():
            loss = loss_of(criterion(model(inputs), labels))
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for gradient, value in zip(total.values(), found, strict=True):
            if value is not None:
                gradient.add_(value, alpha=len(inputs))
        images += len(inputs)
        loss_sum += float(loss.detach().double()) * len(inputs)
    _require_images(images)
    for gradient in total.values():
        gradient.div_(images)
    return loss_sum / images, total


@contextmanager
def displaced(
    model: nn.Module, directions: Sequence[Direction], amounts: Sequence[float]
) -> Iterator[None]:
    """Enclose code with weights w + sum of amount * direction; afterwards w to the last bit."""
    named = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    try:
        with torch.no_grad():
            for direction, amount in zip(directions, amounts, strict=True):
                for name, shift in direction.items():
                    named[name].add_(shift, alpha=amount)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)


def count_images(batches: Batches) -> int:
    """Images in all batches together."""
    images = sum(len(inputs) for inputs, _ in batches)
    _require_images(images)
    return images


def _require_images(images: int) -> None:
    if images == 0:
        raise ValueError("There are no images to measure on: give at least one batch.")

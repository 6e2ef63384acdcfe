"""Each schedule as a loop that is read alone: no rounds, no pending state, no streams."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import conadv
from support.loops import EPSILON, cross_entropy, input_gradient, sign_step

Batch = tuple[Tensor, Tensor]


def vanilla(model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch]) -> None:
    """Ordinary training."""
    for batch in data:
        _update(model, optimizer, batch, [])


def sequential(model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch]) -> None:
    """Attack this batch with these weights, then train on both."""
    for batch in data:
        _update(model, optimizer, batch, [_attacked(model, batch)])


def lookahead(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch], tau: int
) -> None:
    """At step t attack the batch of step t + tau, and train on what was made for this one."""
    made: dict[int, Batch] = {}
    for step, batch in enumerate(data):
        if step + tau < len(data):
            made[step + tau] = _attacked(model, data[step + tau])
        _update(model, optimizer, batch, [made[step]] if step in made else [])


def recycled(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Sequence[Batch],
    share: float = 1.0,
) -> None:
    """Train on the last batch's copies too; this one's come from its own clean gradient."""
    copies: list[Batch] = []
    for images, labels in data:
        gradient = input_gradient(model, images, labels, "clean")
        _update(model, optimizer, (images, labels), copies)
        count = int(share * len(images))
        copies = [(sign_step(images, gradient, EPSILON)[:count], labels[:count])]


def refined(model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch]) -> None:
    """Recycled with two gradient steps: half of the copies are new, the others one step older."""
    size = 2.5 * EPSILON / 2
    old: list[Batch] = []
    new: list[Batch] = []
    origins = torch.zeros(())
    for images, labels in data:
        gradient = input_gradient(model, images, labels, "clean")
        stepped: list[Batch] = []
        if new:
            # Through the batch statistics of all copies, as they are trained on.
            own = input_gradient(model, *_joined(old + new), "adversarial")[-len(origins) :]
            stepped = [(sign_step(new[0][0], own, size, origins), new[0][1])]
        _update(model, optimizer, (images, labels), old + new)
        half = len(images) // 2
        origins, old = images[:half], stepped
        new = [(sign_step(images, gradient, size)[:half], labels[:half])]


def _joined(parts: list[Batch]) -> Batch:
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def _attacked(model: nn.Module, batch: Batch) -> Batch:
    images, labels = batch
    gradient = input_gradient(model, images, labels, "adversarial")
    return sign_step(images, gradient, EPSILON), labels


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, clean: Batch, copies: list[Batch]
) -> None:
    """One step on the mean loss over all images, copies through their own normalisation."""
    parts = [("clean", *clean)] + ([("adversarial", *_joined(copies))] if copies else [])
    total = sum(len(images) for _, images, _ in parts)
    loss = torch.zeros(())
    for branch, images, labels in parts:
        with conadv.route(model, branch):
            loss = loss + cross_entropy(model(images), labels) * len(images) / total
    loss.backward()
    for p in model.parameters():
        if p.grad is None:  # of a branch without images: it is decayed as the others are
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

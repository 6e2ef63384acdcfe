"""What `sequential` and `recycled` compute, written out: one process, plain loops, nothing fused.

To be read, and to hold the fast version against. Both leave the gradient of the update in
``.grad``. A step is given its micro-batches, (images, labels) each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conadv.branches.buffers import frozen_statistics
from conadv.weights.attack import Radius

Batch = tuple[Tensor, Any]
Gradient = dict[str, Tensor]
"""Gradients by the parameters' names."""
Criterion = Callable[[Any, Any], Tensor]


def gradient(model: nn.Module, batch: Batch, criterion: Criterion) -> Gradient:
    """g_k = dL_k(w), of all parameters."""
    images, labels = batch
    named = dict(model.named_parameters())
    loss = criterion(model(images), labels)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def own_parts(gradients: Sequence[Gradient]) -> list[Gradient]:
    """c_k = g_k - mean_j g_j."""
    means = {name: mean_of([g[name] for g in gradients]) for name in gradients[0]}
    return [{name: g[name] - means[name] for name in g} for g in gradients]


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    return torch.stack(list(tensors)).mean(0)


def perturbation(model: nn.Module, direction: Gradient, rho: float, radius: Radius) -> Gradient:
    """e_kl = rho * |w_l| * c_kl / |c_kl|, or rho * c / |c| over all, of matrices alone."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
    if radius == "layer":
        return {n: rho * w.norm() * direction[n] / direction[n].norm() for n, w in weights.items()}
    length = torch.stack([direction[name].norm() for name in weights]).norm()
    return {name: rho * direction[name] / length for name in weights}


def gradient_at(model: nn.Module, e: Gradient, batch: Batch, criterion: Criterion) -> Gradient:
    """dL_k(w + e_k); running statistics stay those of the passes at w."""
    named = dict(model.named_parameters())
    before = {name: named[name].detach().clone() for name in e}
    with torch.no_grad():
        for name, step in e.items():
            named[name].add_(step)
    with frozen_statistics(model):
        found = gradient(model, batch, criterion)
    with torch.no_grad():
        for name, weight in before.items():
            named[name].copy_(weight)
    return found


def update_with(
    model: nn.Module, clean: Sequence[Gradient], moved: Sequence[Gradient], weight: float
) -> None:
    """Leave (1 - weight) * mean clean + weight * mean moved in ``.grad``."""
    for name, p in model.named_parameters():
        p.grad = torch.zeros_like(p)
        for share, gradients in ((1 - weight, clean), (weight, moved)):
            if gradients:
                p.grad += share * mean_of([g[name] for g in gradients])


def sequential(
    model: nn.Module,
    batches: Sequence[Batch],
    criterion: Criterion,
    rho: float,
    radius: Radius = "layer",
    weight: float = 1.0,
) -> None:
    """Each micro-batch along the gradient that it has right before (SAM with m)."""
    clean = [gradient(model, batch, criterion) for batch in batches]
    moved = [
        gradient_at(model, perturbation(model, g, rho, radius), batch, criterion)
        for g, batch in zip(clean, batches, strict=True)
    ]
    update_with(model, clean, moved, weight)


def recycled(
    model: nn.Module,
    batches: Sequence[Batch],
    pending: Sequence[tuple[Batch, Gradient]],
    criterion: Criterion,
    rho: float,
    radius: Radius = "layer",
    centred: bool = True,
) -> list[tuple[Batch, Gradient]]:
    """Last step's micro-batches again, along their own parts of then; every one counts the same.

    Args:
        model: its ``.grad`` are set.
        batches: of this step.
        pending: what the step before returned; empty in the first.
        criterion: mean loss.
        rho: the radius.
        radius: relative to each layer, or of the whole.
        centred: whether the mean is taken out of old gradients.

    Returns:
        The pending micro-batches of the next step, with their directions.
    """
    clean = [gradient(model, batch, criterion) for batch in batches]
    moved = [
        gradient_at(model, perturbation(model, c, rho, radius), batch, criterion)
        for batch, c in pending
    ]
    update_with(model, clean, moved, len(moved) / (len(clean) + len(moved)))
    return list(zip(batches, own_parts(clean) if centred else clean, strict=True))

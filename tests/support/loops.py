"""Small training loops: every schedule, a network, batches, and the loop of the README."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import conadv
from conadv.schedules import Schedule

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EPSILON = 8 / 255
ATTACK = conadv.Attack(epsilon=EPSILON, mean=MEAN, std=STD)
CLASSES = 5
cross_entropy = nn.functional.cross_entropy

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vanilla": conadv.Vanilla,
    "sequential": conadv.Sequential,
    "lookahead": conadv.Lookahead,
    "lookahead, tau 2": lambda: conadv.Lookahead(tau=2),
    "recycled": conadv.Recycled,
    "recycled, fixed": lambda: conadv.Recycled(share=0.25, budget="fixed"),
    "recycled, refine": lambda: conadv.Recycled(refine=2),
    "noise": conadv.Noise,
}
"""What every contract test runs over."""


def network(norm: bool = True, split: bool = True, dropout: float = 0.0, **options: Any) -> Any:
    """A small convolutional network for images (N, 3, 8, 8), always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        body = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity()]
        body += [nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2)]
        body += [nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        head = [nn.Dropout(dropout), nn.Flatten(), nn.Linear(72, CLASSES)]
        model = nn.Sequential(*body, *head)
    return conadv.split_norms(model, **options) if norm and split else model


def batches(count: int, size: int = 8, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Batches of standardised images and labels, always the same."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    made = []
    for _ in range(count):
        images = (torch.rand(size, 3, 8, 8, generator=generator) - mean) / std
        made.append((images, torch.randint(CLASSES, (size,), generator=generator)))
    return made


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)


def run(
    adversary: conadv.Adversary,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    criterion: Callable[[Any, Any], Tensor] = cross_entropy,
    before_step: Callable[[], None] | None = None,
) -> list[float]:
    """The loop of the README; returns the losses."""
    losses = []
    for images, labels in adversary.batches(loader):
        loss = adversary.loss(images, labels, criterion)
        loss.backward()
        adversary.collect()
        if before_step is not None:
            before_step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def pending(adversary: conadv.Adversary) -> list[Any]:
    """Every tensor that waits for a later round."""
    found: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif isinstance(value, list | tuple):
            for one in value:
                visit(one)

    visit(adversary.state_dict())
    return found


def assert_same_state(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    """Weights and buffers are equal: bit for bit unless a tolerance is given."""
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(
            left[key], right[key], msg=lambda m, k=key: f"{k}: {m}", **tolerance
        )


def sign_step(
    images: Tensor, gradient: Tensor, size: float, origin: Tensor | None = None
) -> Tensor:
    """The oracle of an L-inf step, written out in pixels: images -> pixels -> clip -> images."""
    mean, std = (torch.tensor(v, dtype=images.dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    origin = images if origin is None else origin
    pixels, centre = images * std + mean, origin * std + mean
    moved = pixels + size * gradient.sign()
    moved = torch.minimum(torch.maximum(moved, centre - EPSILON), centre + EPSILON)
    return (moved.clamp(0, 1) - mean) / std


def train_by_itself(adversary: conadv.Adversary, loader: Iterable[Any], how: str) -> None:
    """Rounds that are collected by their backward pass; ``how``: "mix" or "loss" gives the loss."""
    optimizer = sgd(adversary.model)
    for images, labels in adversary.batches(loader):
        if how == "mix":
            mixed = adversary.mix(images, labels, cross_entropy)
            cross_entropy(adversary.model(mixed.images), mixed.labels).backward()
        else:
            adversary.loss(images, labels, cross_entropy).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def input_gradient(
    model: nn.Module, images: Tensor, labels: Any, branch: str, criterion: Any = cross_entropy
) -> Tensor:
    """d loss / d images by torch.autograd alone, on a copy of the model: nothing is touched."""
    twin = copy.deepcopy(model)
    leaf = images.detach().clone().requires_grad_()
    with conadv.route(twin, branch):
        loss = criterion(twin(leaf), labels)
    return torch.autograd.grad(loss, leaf)[0]


def concatenated(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)

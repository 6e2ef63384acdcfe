"""Filter-normalised loss landscapes on a line and on a plane (Li et al., 2018)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conadv._numbers import mixed_seed
from conadv.attack import Criterion
from conadv.lab.analysis.passes import (
    Batches,
    Progress,
    Score,
    check_repeatable,
    displaced,
    evaluated,
    score,
    silent,
)


@dataclass(frozen=True)
class LandscapeLine:
    """Loss along one random direction."""

    seed: int
    positions: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float | None, ...]
    images: int


@dataclass(frozen=True)
class LandscapePlane:
    """Loss over the plane of two random directions."""

    seeds: tuple[int, int]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    """Row i is at ys[i], column j at xs[j]."""
    accuracies: tuple[tuple[float | None, ...], ...]
    images: int


def filter_normalised_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction in which every filter has the norm of the model's own filter.

    d_ij <- d_ij / |d_ij| * |w_ij|, with d Gaussian and j a filter of layer i: the weights that
    make one output channel, or one neuron of a fully connected layer. Tensors of one dimension
    (biases, the scales of norms) are not moved (Li et al., 2018, section 4).

    Args:
        model: Weights to be normalised by; its biases and norms get zeros.
        seed: The same seed and shapes give the same Gaussian numbers on any device.
    """
    direction: dict[str, Tensor] = {}
    for index, (name, weight) in enumerate(model.named_parameters()):
        if weight.ndim < 2:
            direction[name] = torch.zeros_like(weight)
            continue
        generator = torch.Generator().manual_seed(mixed_seed(seed, index))
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        own = weight.detach().flatten(1).norm(dim=1)
        scale = own / drawn.flatten(1).norm(dim=1)
        direction[name] = drawn * scale.view(-1, *([1] * (weight.ndim - 1)))
    return direction


def positions(reach: float, count: int) -> tuple[float, ...]:
    """An odd number of evenly spread points in [-reach, reach], the middle one exactly 0.

    Raises:
        ValueError: An even count, one below 3, or a reach that is not above 0.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(
            f"points={count}: give an odd number, 3 or more, so that the weights themselves are "
            "one of them."
        )
    if not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"reach={reach}: give a finite number above 0.")
    half = count // 2
    return tuple(reach * i / half for i in range(-half, half + 1))


def landscape_line(
    model: nn.Module,
    batches: Batches,
    criterion: Criterion = cross_entropy,
    *,
    at: Sequence[float],
    seed: int = 0,
    branch: str | None = None,
    progress: Progress = silent,
) -> LandscapeLine:
    """Loss and accuracy at w + a d, for a filter-normalised random direction d.

    Args:
        model: Left as it was; measured in eval mode.
        batches: (images, labels) on the model's device, gone through once for each point.
        criterion: ``criterion(outputs, labels)``, the mean over the images it is given.
        at: The values of a, see `positions`. 1 moves every filter by its own length.
        seed: Of the direction.
        branch: Normalisation branch; None takes the model's first.
        progress: Told of each point.

    Raises:
        ValueError: No images or points, no such branch, or batches that is an iterator.
    """
    _require_points(at)
    places = [(a,) for a in at]
    found = _scores(model, batches, criterion, places, (seed,), branch, progress)
    return LandscapeLine(
        seed,
        tuple(at),
        tuple(one.loss for one in found),
        tuple(one.accuracy for one in found),
        found[0].images,
    )


def landscape_plane(
    model: nn.Module,
    batches: Batches,
    criterion: Criterion = cross_entropy,
    *,
    xs: Sequence[float],
    ys: Sequence[float],
    seeds: tuple[int, int] = (0, 1),
    branch: str | None = None,
    progress: Progress = silent,
) -> LandscapePlane:
    """Loss and accuracy at w + x d + y e, for two filter-normalised random directions d and e.

    The directions are drawn independently, as in the paper; in that many dimensions they are all
    but orthogonal. Arguments are those of `landscape_line`.

    Raises:
        ValueError: As `landscape_line`, or two equal seeds.
    """
    _require_points(xs)
    _require_points(ys)
    if seeds[0] == seeds[1]:
        raise ValueError(f"seeds={seeds}: two equal ones give one direction, not a plane.")
    places = [(x, y) for y in ys for x in xs]
    found = _scores(model, batches, criterion, places, seeds, branch, progress)
    rows = [found[i : i + len(xs)] for i in range(0, len(found), len(xs))]
    return LandscapePlane(
        seeds,
        tuple(xs),
        tuple(ys),
        tuple(tuple(one.loss for one in row) for row in rows),
        tuple(tuple(one.accuracy for one in row) for row in rows),
        rows[0][0].images,
    )


def _scores(
    model: nn.Module,
    batches: Batches,
    criterion: Criterion,
    places: Sequence[tuple[float, ...]],
    seeds: Sequence[int],
    branch: str | None,
    progress: Progress,
) -> list[Score]:
    """Loss and accuracy at each place, one coordinate for each seed's direction."""
    check_repeatable(batches)
    frozen = evaluated(model, branch)
    directions = [filter_normalised_direction(frozen, seed) for seed in seeds]
    found: list[Score] = []
    for place in places:
        with displaced(frozen, directions, place):
            found.append(score(frozen, batches, criterion))
        progress(len(found), len(places))
    return found


def _require_points(at: Sequence[float]) -> None:
    if not at or not all(math.isfinite(a) for a in at):
        raise ValueError(f"points {tuple(at)}: give at least one, all of them finite.")

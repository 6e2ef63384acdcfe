"""Staleness: how far perturbations made with old weights agree with fresh ones."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from conadv.attack import Attack
from conadv.lab.analysis.passes import Batches

NOISE = 1e-6
"""Pixel differences up to this come from rounding a copy to float32."""


@dataclass(frozen=True)
class Agreement:
    """Means over images of stale against fresh perturbations."""

    cosine: float
    """Cosine of the two perturbations in pixels; 1: same direction, `chance`: nothing in common.

    An image with a perturbation of zero counts as 0.
    """
    same_sign: float
    """Share of the values with the same sign, of those where either perturbation is not zero."""
    chance: float
    """Cosine of the fresh perturbations and random noise of the attack's radius on the same images:
    what weights without anything in common have. It is 0 for pixels in mid-range, and above where
    many are black or white already and can go one way only."""
    images: int


@dataclass(frozen=True)
class LoggedAgreement:
    """One line of a training log."""

    step: int
    learning_rate: float
    agreement: float


@dataclass(frozen=True)
class AgreementPhase:
    """Means over a phase of training."""

    first_step: int
    last_step: int
    learning_rate: float
    agreement: float
    steps: int
    """Steps of the phase that were logged."""


@dataclass(frozen=True)
class AgreementSummary:
    """Agreement over the course of training."""

    mean: float
    lowest: float
    phases: tuple[AgreementPhase, ...]
    lr_correlation: float | None
    """Pearson's, of learning rate and agreement over the logged steps; None where one of the two
    does not vary."""


def perturbation_agreement(
    stale: nn.Module,
    fresh: nn.Module,
    batches: Batches,
    attack: Attack,
    *,
    seed: int = 0,
) -> Agreement:
    """Attack the same images with both models and compare the perturbations in pixels.

    The cosine is that of `Adversary(track_agreement=True)`, but between any two sets of weights.

    Args:
        stale: With the older weights; left as it was.
        fresh: With the newer ones.
        batches: (images standardised, labels) on the models' device.
        attack: As in training. Both models draw the same random numbers.
        seed: Of random starts and targets.

    Raises:
        ValueError: There are no images, or what the attack refuses.
    """
    cosines: list[Tensor] = []
    chances: list[Tensor] = []
    same, counted = 0, 0
    for number, (images, labels) in enumerate(batches):
        made = []
        for model in (stale, fresh):
            generator = torch.Generator(images.device).manual_seed(seed + number)
            copies = attack(model, images, labels, cross_entropy, generator=generator)
            made.append(_pixels(copies.double() - images.double(), attack))
        cosines.append(cosine_similarity(made[0].flatten(1), made[1].flatten(1)))
        noise = attack.noise(images, generator).double() - images.double()
        chances.append(cosine_similarity(made[1].flatten(1), _pixels(noise, attack).flatten(1)))
        either = (made[0].abs() > NOISE) | (made[1].abs() > NOISE)
        signs = [m.sign() * (m.abs() > NOISE) for m in made]
        same += int(((signs[0] == signs[1]) & either).sum())
        counted += int(either.sum())
    if not cosines:
        raise ValueError("There are no images to attack: give at least one batch.")
    every = torch.cat(cosines)
    return Agreement(
        cosine=float(every.mean()),
        same_sign=same / counted if counted else 0.0,
        chance=float(torch.cat(chances).mean()),
        images=len(every),
    )


def agreement_over_training(
    logged: Iterable[LoggedAgreement], phases: int = 10
) -> AgreementSummary:
    """Put logged agreements together: over training, and against the learning rate.

    Args:
        logged: In the order of training. Lines that are not finite are left out.
        phases: Into how many parts of equal numbers of lines training is cut, at most.

    Raises:
        ValueError: Nothing was logged, or ``phases`` is below 1.
    """
    if phases < 1:
        raise ValueError(f"phases={phases}: give at least 1.")
    lines = [line for line in logged if math.isfinite(line.agreement)]
    if not lines:
        raise ValueError("No agreement was logged: there is nothing to put together.")
    count = min(phases, len(lines))
    cuts = [len(lines) * i // count for i in range(count + 1)]
    parts = [lines[a:b] for a, b in pairwise(cuts)]
    return AgreementSummary(
        mean=fmean(line.agreement for line in lines),
        lowest=min(line.agreement for line in lines),
        phases=tuple(
            AgreementPhase(
                part[0].step,
                part[-1].step,
                fmean(line.learning_rate for line in part),
                fmean(line.agreement for line in part),
                len(part),
            )
            for part in parts
        ),
        lr_correlation=_correlation(
            [line.learning_rate for line in lines], [line.agreement for line in lines]
        ),
    )


def _pixels(delta: Tensor, attack: Attack) -> Tensor:
    """Undo the standardisation of a difference of images."""
    std = 1.0 if attack.std is None else attack.std
    if isinstance(std, tuple):
        return delta * torch.tensor(std, device=delta.device).view(1, -1, *[1] * (delta.ndim - 2))
    return delta * std  # type: ignore[operator]


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    both = torch.tensor([a, b], dtype=torch.float64)
    spread = both.std(dim=1, correction=0)
    # Equal numbers have a spread of rounding alone.
    if bool((spread <= 1e-12 * both.abs().amax(dim=1)).any()):
        return None
    return float(torch.corrcoef(both)[0, 1])

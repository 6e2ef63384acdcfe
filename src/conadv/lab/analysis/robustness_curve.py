"""Accuracy against the radius of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from conadv.attack import Attack
from conadv.lab.analysis.passes import Batches, Progress, check_repeatable, silent
from conadv.trainer.evaluation.robustness import robust_accuracy

EPSILONS = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)


@dataclass(frozen=True)
class RobustnessCurve:
    """Accuracies of one branch under one attack of growing radius."""

    branch: str | None
    steps: int
    """1 is FGSM, more are PGD."""
    clean_accuracy: float
    """Fraction in [0, 1]."""
    epsilons: tuple[float, ...]
    """Radii in pixel units on [0, 1]."""
    accuracies: tuple[float, ...]
    """Fractions of images right without the attack and under it; one per epsilon."""
    images: int


def robustness_curve(
    model: nn.Module,
    batches: Batches,
    attack: Attack,
    *,
    epsilons: Sequence[float] = EPSILONS,
    branch: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> RobustnessCurve:
    """Attack every image at every radius, in eval mode, through one branch.

    Args:
        model: Maps images to logits; left as it was.
        batches: (images standardised, labels) on the model's device, gone through once for each
            radius.
        attack: Its ``epsilon`` is replaced by each radius in turn, the same for all images, its
            ``step_size`` by the default for it, its branch and mode as `robust_accuracy` says.
        epsilons: Radii in pixel units, 0 or more.
        branch: Normalisation branch; None takes the model's first.
        seed: Of random starts: the same for every radius.
        progress: Told of each radius.

    Raises:
        ValueError: No radius, or what `robust_accuracy` and `Attack` refuse.
    """
    check_repeatable(batches)
    if not epsilons:
        raise ValueError("epsilons is empty: give at least one radius, such as 4/255.")
    found = []
    for epsilon in epsilons:
        sized = replace(attack, epsilon=epsilon, epsilon_min=None, step_size=None)
        found.append(robust_accuracy(model, batches, sized, branch=branch, seed=seed))
        progress(len(found), len(epsilons))
    return RobustnessCurve(
        branch,
        attack.steps,
        found[0].clean_accuracy,
        tuple(epsilons),
        tuple(one.robust_accuracy for one in found),
        found[0].images,
    )

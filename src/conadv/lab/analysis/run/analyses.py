"""The analyses of a run by name: each takes an opened run and gives plain values."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from conadv.attack import Attack
from conadv.errors import install_command
from conadv.lab.analysis import (
    Progress,
    corruption_accuracy,
    generalisation_gap,
    hessian_summary,
    landscape_line,
    landscape_plane,
    robustness_curve,
    sam_sharpness,
)
from conadv.lab.analysis.corruptions import CORRUPTIONS, SEVERITIES
from conadv.lab.analysis.landscape import positions
from conadv.lab.analysis.robustness_curve import EPSILONS
from conadv.lab.analysis.run.old_gradients import old_gradients
from conadv.lab.analysis.run.stale_pairs import kept_checkpoints, staleness
from conadv.lab.analysis.sam_sharpness import RADII
from conadv.trainer.checkpoint.load_run import SavedRun
from conadv.trainer.input.images import EvalImages


@dataclass(frozen=True)
class AnalysisSettings:
    """How much is measured. Images are spread evenly over their split."""

    images: int = 1000
    """Images of each analysis but the gap."""
    gap_images: int = 10_000
    """Training images, and test images, of the gap."""
    batch: int | None = None
    """Images per pass, which bounds memory; None: the recipe's evaluation.batch. No figure depends
    on it but for PGD's random starts."""
    split: str = "train"
    """Images of sharpness and landscape: train or test."""
    branch: str | None = None
    """Normalisation branch of gap, sharpness, landscape, corruptions; None: the recipe's."""
    seed: int = 0
    """Seed of start vectors, probes, directions, noise and random starts."""
    eigenvalues: int = 5
    trace_probes: int = 10
    radii: tuple[float, ...] = RADII
    """Radii of SAM-sharpness, in weight space."""
    directions: int = 3
    """Random lines of the landscape."""
    line_points: int = 21
    plane_points: int = 11
    """Points per axis; 0 leaves the plane out."""
    reach: float = 1.0
    """Extent of lines and plane: 1 moves every filter by its own length."""
    epsilons: tuple[float, ...] = EPSILONS
    """Radii of the robustness curve, in pixel units on [0, 1]."""
    pgd_steps: int = 10
    """0: FGSM alone."""
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES
    pairs: int = 20
    """Pairs of checkpoints that staleness compares, at most."""
    gradient_steps: int = 8
    """Checkpoints from which gradients takes a step, at most."""
    micro_batches: int = 32
    """Most micro-batches of such a step whose gradients are compared."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: give {least} or more.")
        if self.split not in ("train", "test"):
            raise ValueError(f"split={self.split!r}: allowed are train and test.")
        positions(self.reach, self.line_points)
        if self.plane_points:
            positions(self.reach, self.plane_points)


_LEAST = {"images": 1, "gap_images": 1, "batch": 1, "eigenvalues": 1, "trace_probes": 1}
_LEAST |= {"directions": 1, "pgd_steps": 0, "plane_points": 0, "pairs": 1}
_LEAST |= {"gradient_steps": 1, "micro_batches": 2}


Values = dict[str, Any]


class Repeatable:
    """Batches that begin anew in every loop, made when they are asked for."""

    def __init__(self, images: EvalImages, size: int, device: torch.device) -> None:
        self._images = images
        self._size = size
        self._device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._images.batches(self._size, self._device)


@dataclass(frozen=True)
class Request:
    """What an analysis is given."""

    saved: SavedRun
    settings: AnalysisSettings
    progress: Progress

    @property
    def branch(self) -> str | None:
        """The branch to measure; None for a model without branches."""
        return self.saved.branch(self.settings.branch) if len(self.saved.branches) > 1 else None

    def batches(self, split: str, count: int, *, once: bool = False) -> Repeatable:
        """Read at most so many images of a split, without augmentation.

        Images in files are decoded once and kept as bytes, unless they are needed only `once`.
        """
        splits = self.saved.splits
        images = splits.train(count) if split == "train" else splits.test().first(count)
        size = _batch(self.settings, self.saved)
        return Repeatable(images if once else images.resident(), size, self.saved.device)


def gap(request: Request) -> Values:
    """Training and test loss and accuracy."""
    count = request.settings.gap_images
    found = generalisation_gap(
        request.saved.model,
        request.batches("train", count, once=True),
        request.batches("test", count, once=True),
        branch=request.branch,
    )
    return asdict(found) | {"loss_gap": found.loss_gap, "accuracy_gap": found.accuracy_gap}


def sharpness(request: Request) -> Values:
    """Hessian and SAM-sharpness; without curvlinops the latter alone, and a note."""
    chosen = request.settings
    batches = request.batches(chosen.split, chosen.images)
    sam = sam_sharpness(request.saved.model, batches, radii=chosen.radii, branch=request.branch)
    if not can_do_hessians():
        command = install_command("sharpness")
        note = f"No Hessian: curvlinops is not installed. Type: {command}"
        return {"hessian": None, "sam": asdict(sam), "note": note}
    hessian = hessian_summary(
        request.saved.model,
        batches,
        branch=request.branch,
        eigenvalues=chosen.eigenvalues,
        trace_probes=chosen.trace_probes,
        seed=chosen.seed,
        progress=request.progress,
    )
    return {"hessian": asdict(hessian), "sam": asdict(sam)}


def landscape(request: Request) -> Values:
    """Loss along random lines, and over one plane."""
    chosen = request.settings
    batches = request.batches(chosen.split, chosen.images)
    model, branch = request.saved.model, request.branch
    line = positions(chosen.reach, chosen.line_points)
    side = positions(chosen.reach, chosen.plane_points) if chosen.plane_points else ()
    total = chosen.directions * len(line) + len(side) ** 2
    seeds = [1000 * chosen.seed + i for i in range(max(2, chosen.directions))]
    lines = []
    for number, seed in enumerate(seeds[: chosen.directions]):
        before = number * len(line)
        found = landscape_line(
            model,
            batches,
            at=line,
            seed=seed,
            branch=branch,
            progress=_after(request.progress, before, total),
        )
        lines.append(asdict(found))
    if not side:
        return {"lines": lines, "plane": None}
    plane = landscape_plane(
        model,
        batches,
        xs=side,
        ys=side,
        seeds=(seeds[0], seeds[1]),
        branch=branch,
        progress=_after(request.progress, chosen.directions * len(line), total),
    )
    return {"lines": lines, "plane": asdict(plane)}


def robustness(request: Request) -> Values:
    """Accuracy against epsilon on test images: FGSM and PGD through every branch."""
    chosen, saved = request.settings, request.saved
    batches = request.batches("test", chosen.images)
    facts, norm = saved.facts, saved.recipe.attack.norm
    attacks = [Attack(0.0, facts.mean, facts.std, norm=norm)]
    if chosen.pgd_steps > 0:
        attacks.append(
            Attack(0.0, facts.mean, facts.std, norm=norm, steps=chosen.pgd_steps, random_start=1.0)
        )
    curves: list[Values] = []
    count = len(chosen.epsilons)
    total = len(saved.branches) * len(attacks) * count
    for branch in saved.branches:
        for attack, name in zip(attacks, ("fgsm", "pgd"), strict=False):
            curve = robustness_curve(
                saved.model,
                batches,
                attack,
                epsilons=chosen.epsilons,
                branch=branch if len(saved.branches) > 1 else None,
                seed=chosen.seed,
                progress=_after(request.progress, len(curves) * count, total),
            )
            curves.append(asdict(curve) | {"branch": branch, "attack": name})
    return {"norm": norm, "curves": curves}


def corruptions(request: Request) -> Values:
    """Accuracy on corrupted test images."""
    chosen, facts = request.settings, request.saved.facts
    found = corruption_accuracy(
        request.saved.model,
        request.batches("test", chosen.images),
        facts.mean,
        facts.std,
        corruptions=chosen.corruptions,
        severities=chosen.severities,
        branch=request.branch,
        seed=chosen.seed,
        progress=request.progress,
    )
    cells = {
        name: {str(severity): value for severity, value in row.items()}
        for name, row in found.accuracies.items()
    }
    return asdict(found) | {"accuracies": cells, "means": found.means, "mean": found.mean}


def stale(request: Request) -> Values:
    """Logged agreement, and agreement between the checkpoints that were kept."""
    chosen, saved = request.settings, request.saved
    images = saved.splits.train(chosen.images).resident()
    # The micro-batch of training: in train mode its statistics are part of the attack.
    batches = Repeatable(images, saved.recipe.micro_batch, saved.device)
    return staleness(saved, batches, chosen.pairs, chosen.seed, request.progress)


def gradients(request: Request) -> Values:
    """Agreement of old and fresh gradients, one step on from the checkpoints that were kept."""
    chosen = request.settings
    return old_gradients(
        request.saved, chosen.gradient_steps, chosen.micro_batches, chosen.seed, request.progress
    )


@dataclass(frozen=True)
class Analysis:
    """One analysis, and which settings it depends on."""

    run: Callable[[Request], Values]
    settings: tuple[str, ...]


_HESSIAN = ("eigenvalues", "trace_probes", "radii")
_POINTS = ("directions", "line_points", "plane_points", "reach")
ANALYSES: dict[str, Analysis] = {
    "gap": Analysis(gap, ("branch", "gap_images")),
    "sharpness": Analysis(sharpness, ("branch", "seed", "images", "split", *_HESSIAN)),
    "landscape": Analysis(landscape, ("branch", "seed", "images", "split", *_POINTS)),
    "robustness": Analysis(robustness, ("seed", "images", "epsilons", "pgd_steps", "batch")),
    "corruptions": Analysis(corruptions, ("branch", "seed", "images", "corruptions", "severities")),
    "staleness": Analysis(stale, ("seed", "images", "pairs")),
    "gradients": Analysis(gradients, ("seed", "gradient_steps", "micro_batches")),
}
"""Analyses in the order in which they are done: the quick ones first."""


def used_settings(name: str, settings: AnalysisSettings, saved: SavedRun) -> Values:
    """The settings that an analysis depends on, as plain values, defaults filled in."""
    used = {field: getattr(settings, field) for field in ANALYSES[name].settings}
    if "branch" in used:
        used["branch"] = saved.branch(settings.branch)
    if "batch" in used:  # of random starts only: batches draw theirs in turn
        used["batch"] = _batch(settings, saved)
    if name == "sharpness":
        used["hessian"] = can_do_hessians()
    if name in ("staleness", "gradients"):
        used["checkpoints"] = [step for step, _ in kept_checkpoints(saved.folder)]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in used.items()}


def can_do_hessians() -> bool:
    """Whether curvlinops is there."""
    return importlib.util.find_spec("curvlinops") is not None


def plain_values(value: Any) -> Any:
    """Convert for JSON: tuples to lists, numbers that are not finite to None."""
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _batch(settings: AnalysisSettings, saved: SavedRun) -> int:
    return settings.batch or saved.recipe.evaluation.batch


def _after(progress: Progress, before: int, total: int) -> Progress:
    def tell(done: int, _: int | None) -> None:
        progress(before + done, total)

    return tell

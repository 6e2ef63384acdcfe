"""How much of a run is analysed."""

from __future__ import annotations

from dataclasses import dataclass

from conadv.analysis.corruptions import CORRUPTIONS, SEVERITIES
from conadv.analysis.landscape import positions
from conadv.analysis.robustness_curve import EPSILONS
from conadv.analysis.sam_sharpness import RADII


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
    """Of start vectors, probes, directions, noise and random starts."""
    eigenvalues: int = 5
    trace_probes: int = 10
    radii: tuple[float, ...] = RADII
    """Of SAM-sharpness, in weight space."""
    directions: int = 3
    """Random lines of the landscape."""
    line_points: int = 21
    plane_points: int = 11
    """Per axis; 0 leaves the plane out."""
    reach: float = 1.0
    """Of lines and plane: 1 moves every filter by its own length."""
    epsilons: tuple[float, ...] = EPSILONS
    """Of the robustness curve, in pixel units on [0, 1]."""
    pgd_steps: int = 10
    """0: FGSM alone."""
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES
    pairs: int = 20
    """Pairs of checkpoints that staleness compares, at most."""

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

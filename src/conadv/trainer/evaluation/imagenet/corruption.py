"""ImageNet-C: error per corruption, and mCE against AlexNet's (arXiv 1903.12261)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import fmean
from typing import Any

SEVERITIES = (1, 2, 3, 4, 5)

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error as a fraction, averaged over the severities, in the order of the paper.

Table 1 of the paper prints these in whole per cent; the digits are those that its first author
published (github.com/hendrycks/robustness, issue 10), which everybody divides by.
"""

CORRUPTIONS = tuple(ALEXNET_ERRORS)
"""The 15 of the benchmark. The four extra ones (such as ``speckle_noise``) are for tuning."""


@dataclass(frozen=True)
class CorruptionErrors:
    """Top-1 errors on ImageNet-C. Fractions, but for the two figures that are per cent."""

    errors: Mapping[str, Mapping[int, float]]
    """Error of each corruption and severity that was measured."""
    mean_errors: Mapping[str, float]
    """Mean error of each corruption over its five severities; without those that lack one."""
    normalised: Mapping[str, float]
    """CE: the same in per cent of AlexNet's error on the corruption."""
    mean_error: float | None
    """Mean over the 15 corruptions, not normalised."""
    mce: float | None
    """mCE: mean of the 15 CE, in per cent; AlexNet has 100."""
    missing: tuple[str, ...]
    """What was not measured, such as ``fog`` or ``snow/3``."""
    withheld: str | None
    """Why there is neither mean error nor mCE; None if there are."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; severities become strings, as JSON wants keys to be."""
        rows = {name: {str(s): e for s, e in row.items()} for name, row in self.errors.items()}
        return asdict(self) | {"errors": rows, "missing": list(self.missing)}


def corruption_errors(cells: Mapping[tuple[str, int], tuple[int, int]]) -> CorruptionErrors:
    """Put the sets of ImageNet-C together.

    CE_c = sum_s E(c, s) / sum_s E_AlexNet(c, s) and mCE = mean_c CE_c, in per cent (Hendrycks &
    Dietterich, 2019, section 4.1). The figures over all corruptions are given only when all are
    there, because corruptions differ so much that the mean over fewer says something else.

    Args:
        cells: (corruption, severity) to (wrong answers, images).

    Raises:
        ValueError: A corruption or a severity that the benchmark does not have, or counts that
            cannot be.
    """
    for (corruption, severity), (wrong, images) in cells.items():
        if corruption not in ALEXNET_ERRORS or severity not in SEVERITIES:
            raise ValueError(
                f"ImageNet-C has no {corruption} of severity {severity}: there are "
                f"{', '.join(CORRUPTIONS)}, each with severities 1 to 5."
            )
        if not 0 <= wrong <= images or images == 0:
            raise ValueError(
                f"{corruption}/{severity}: {wrong} wrong answers of {images} images cannot be."
            )
    # Exact fractions, so that neither the order of the severities nor rounding shows in the mean.
    exact = {cell: Fraction(wrong, images) for cell, (wrong, images) in cells.items()}
    errors: dict[str, dict[int, float]] = {}
    means: dict[str, float] = {}
    missing: list[str] = []
    for corruption in CORRUPTIONS:
        found = {s: exact[corruption, s] for s in SEVERITIES if (corruption, s) in exact}
        if found:
            errors[corruption] = {severity: float(error) for severity, error in found.items()}
        if len(found) == len(SEVERITIES):
            means[corruption] = float(sum(found.values(), Fraction()) / len(SEVERITIES))
        elif found:
            missing += [f"{corruption}/{s}" for s in SEVERITIES if s not in found]
        else:
            missing.append(corruption)
    normalised = {name: 100 * (error / ALEXNET_ERRORS[name]) for name, error in means.items()}
    return CorruptionErrors(
        errors=errors,
        mean_errors=means,
        normalised=normalised,
        mean_error=None if missing else fmean(means.values()),
        mce=None if missing else fmean(normalised.values()),
        missing=tuple(missing),
        withheld=_reason(len(means), missing),
    )


def _reason(complete: int, missing: list[str]) -> str | None:
    if not missing:
        return None
    return (
        f"Mean error and mCE need all {len(CORRUPTIONS)} corruptions with severities 1 to 5; "
        f"{complete} are complete, and these are missing: {', '.join(missing)}."
    )

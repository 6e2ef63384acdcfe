"""Accuracy on corrupted images, made on the fly in the manner of CIFAR-10-C.

The severities are those of CIFAR-10-C (Hendrycks & Dietterich, 2019, arXiv 1903.12261), read from
``make_cifar_c.py`` in github.com/hendrycks/robustness at ca36008. Ten of its nineteen corruptions
are here, those that need neither pictures of frost nor an image library of their own; so means
over them are not the published benchmark's. What CIFAR-10-C has drawn once, is drawn here from a
seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from conadv._numbers import mixed_seed
from conadv.attack.forward import evaluation_mode
from conadv.branches import branch_names, route
from conadv.lab.analysis import corrupt as _corrupt
from conadv.lab.analysis.passes import Batches, Progress, check_repeatable, silent

SEVERITIES = (1, 2, 3, 4, 5)

_MAKERS: dict[str, _corrupt.Corruption] = {
    "gaussian_noise": _corrupt.gaussian_noise,
    "shot_noise": _corrupt.shot_noise,
    "impulse_noise": _corrupt.impulse_noise,
    "speckle_noise": _corrupt.speckle_noise,
    "gaussian_blur": _corrupt.gaussian_blur,
    "defocus_blur": _corrupt.defocus_blur,
    "brightness": _corrupt.brightness,
    "contrast": _corrupt.contrast,
    "pixelate": _corrupt.pixelate,
    "jpeg_compression": _corrupt.jpeg_compression,
}
CORRUPTIONS = tuple(_MAKERS)
"""Names; ``speckle_noise`` and ``gaussian_blur`` are of CIFAR-10-C's extra four."""


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracies as fractions in [0, 1]."""

    clean: float
    accuracies: Mapping[str, Mapping[int, float]]
    """Accuracy by corruption and severity."""
    images: int
    """Images that each cell was measured on."""

    @property
    def means(self) -> dict[str, float]:
        """Means per corruption, over its severities."""
        return {name: fmean(cells.values()) for name, cells in self.accuracies.items()}

    @property
    def mean(self) -> float:
        """Mean over all corruptions, each counting the same."""
        return fmean(self.means.values())


def corrupt(
    images: Tensor, corruption: str, severity: int, *, seed: int = 0, start: int = 0
) -> Tensor:
    """Corrupt images and round them down to bytes, as CIFAR-10-C is stored.

    Args:
        images: On [0, 1], shape (N, C, H, W), floating point, on any device.
        corruption: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of the noise.
        start: Place of the first image in its set. Noise is a function of seed, corruption,
            severity and place, and drawn on the CPU: batches and devices do not matter.

    Returns:
        The same shape, dtype and device; values are multiples of 1/255.

    Raises:
        ValueError: No such corruption or severity, or images that are not (N, C, H, W) floats on
            [0, 1].
    """
    _check(corruption, severity)
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: give floats (N, C, H, W) "
            "on [0, 1]."
        )
    pixels = images.detach().cpu().double()
    if len(pixels) and not (pixels.min() >= -1e-4 and pixels.max() <= 1 + 1e-4):
        raise ValueError(
            f"images run from {pixels.min():.3g} to {pixels.max():.3g}: give pixels on [0, 1], "
            "not standardised ones."
        )
    number = CORRUPTIONS.index(corruption)
    done = torch.empty_like(pixels)
    for index, image in enumerate(pixels.clamp(0, 1)):
        place = mixed_seed(seed, number, severity, start + index)
        generator = torch.Generator().manual_seed(place)
        done[index] = _MAKERS[corruption](image, severity, generator)
    # Down, not to the nearest; but 1e-6 off a whole number is rounding of ours.
    stored = (done.clamp(0, 1) * 255 + 1e-6).floor()
    return (stored / 255).to(images)


def corruption_accuracy(
    model: nn.Module,
    batches: Batches,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    branch: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> CorruptionAccuracy:
    """Classify the images as they are, and under each corruption at each severity.

    Args:
        model: Maps images to logits; left as it was, measured in eval mode.
        batches: (images standardised (N, C, H, W), labels (N,)) on the model's device, gone
            through once for each cell.
        mean: Per channel, that was subtracted from the [0, 1] image.
        std: Per channel, that it was divided by.
        corruptions: Names, at least one.
        severities: At least one.
        branch: Normalisation branch; None takes the model's first. Ignored without branches.
        seed: Of the noise.
        progress: Told of each cell.

    Raises:
        ValueError: No images, what `corrupt` refuses, or no such branch.
    """
    check_repeatable(batches)
    if not corruptions or not severities:
        raise ValueError("Give at least one corruption and one severity.")
    for corruption in corruptions:
        for severity in severities:
            _check(corruption, severity)

    def accuracy(corruption: str | None, severity: int = 0) -> tuple[float, int]:
        right = seen = 0
        for images, labels in batches:
            shape = (1, -1, 1, 1)
            shift = torch.tensor(mean, device=images.device).view(shape)
            scale = torch.tensor(std, device=images.device).view(shape)
            if corruption is not None:
                pixels = (images * scale + shift).clamp(0, 1)
                changed = corrupt(pixels, corruption, severity, seed=seed, start=seen)
                images = (changed - shift) / scale
            with torch.no_grad():
                right += int((model(images).argmax(dim=1) == labels).sum())
            seen += len(images)
        if seen == 0:
            raise ValueError("There are no images to measure on: give at least one batch.")
        return right / seen, seen

    with (
        evaluation_mode(model),
        route(model, branch if branch_names(model) else None),
    ):
        clean, count = accuracy(None)
        total = len(corruptions) * len(severities)
        cells: dict[str, dict[int, float]] = {}
        for corruption in corruptions:
            cells[corruption] = {}
            for severity in severities:
                cells[corruption][severity], _ = accuracy(corruption, severity)
                progress(sum(map(len, cells.values())), total)
    return CorruptionAccuracy(clean, cells, count)


def _check(corruption: str, severity: int) -> None:
    if corruption not in _MAKERS:
        raise ValueError(f"corruption={corruption!r}: there are {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r}: give 1 to 5.")

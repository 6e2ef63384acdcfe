"""Argument checks of the attack, and of what it is given."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from conadv._tree import first_tensor

OUTSIDE_SHARE = 0.2
"""More pixels than that outside the valid range are no overshoot of resizing."""


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is a non-empty floating-point batch."""
    if isinstance(images, Mapping | tuple | list):
        raise ValueError(
            f"images are a {type(images).__name__}: several inputs go with Attack(at='layer'), "
            "which perturbs what that layer gives. Where the pixels of one of them are to be "
            "perturbed, give that one here and the others beside the labels: adversary.mix(images, "
            "{'others': others, 'labels': labels}) has the rows of all."
        )
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images are {given}: give a floating-point tensor, standardised as the model sees "
            "it (uint8 images: divide by 255, subtract the mean, divide by the std)."
        )
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}: give (N, ...) with N >= 1.")


def loss_of(found: Any) -> Tensor:
    """The loss, 0-dim, in what a criterion returned.

    Args:
        found: a tensor of one element, a mapping with the key ``"loss"``, or a tuple or list that
            begins with the loss: ``(loss, logs)``.

    Raises:
        ValueError: there is no one number in it.
    """
    loss = found
    if isinstance(found, Mapping):
        loss = found.get("loss")
    elif isinstance(found, tuple | list) and found:
        loss = found[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(found).__name__
        raise ValueError(
            f"The criterion returned {given}: it must return one number, the mean over the images "
            "it is given (reduction='mean'), by itself, as (loss, logs) or in a dict as 'loss'."
        )
    return loss.reshape(())


def is_finite(value: Any) -> bool:
    """Whether `value` is a real number, neither infinite nor NaN."""
    return isinstance(value, Real) and math.isfinite(value)


def check_rows(images: Tensor, labels: Any) -> None:
    """Raise ValueError unless the first tensor of `labels` has one row per image."""
    first = first_tensor(labels)
    if first is not None and (first.ndim == 0 or first.shape[0] != images.shape[0]):
        raise ValueError(
            f"{images.shape[0]} images but labels of shape {tuple(first.shape)}: give one label "
            "per image."
        )


def check_units(mean: Any, std: Any, low: float, high: float) -> None:
    """Raise ValueError for a mean or std that is not in the units of the pixel range."""
    means = mean if isinstance(mean, tuple) else () if mean is None else (mean,)
    stds = std if isinstance(std, tuple) else () if std is None else (std,)
    for name, values, least, most in (
        ("mean", means, low, high),
        ("std", stds, 0.0, high - low),
    ):
        for value in values:
            if not least <= value <= most:
                raise ValueError(
                    f"{name}={value:g} does not fit the pixel range {low:g} to {high:g}: it is in "
                    f"units of pixels, not grey levels. Did you mean {name}={value:g}/255? Give "
                    "pixel_range=(0, 255) where epsilon is in grey levels too."
                )


def doubt_units(
    images: Tensor, pixels: Tensor, standardised: bool, pixel_range: tuple[float, float]
) -> str | None:
    """What speaks against `pixels` being the pixels of `images`, or None."""
    low, high = pixel_range
    margin = (high - low) / 10
    outside = ((pixels < low - margin) | (pixels > high + margin)).float().mean()
    if float(outside) > OUTSIDE_SHARE:
        told = "with the mean and std given" if standardised else "and no mean and std were given"
        return (
            f"{float(outside):.0%} of the pixels are outside {low:g} to {high:g}: the images run "
            f"from {float(images.min()):.3g} to {float(images.max()):.3g}, {told}. Give the "
            "attack the mean and std that the images were standardised with, in the units of the "
            "pixel range, or pixel_range=None for inputs without one."
        )
    if standardised and float(images.min()) >= 0 and float(pixels.min()) > low + margin:
        return (
            f"No image has a value below 0 (they run from {float(images.min()):.3g} to "
            f"{float(images.max()):.3g}), as standardised ones have: if they are not standardised, "
            "leave the attack's mean and std out, or epsilon counts for far less."
        )
    return None

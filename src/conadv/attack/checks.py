"""Argument checks of the attack, and of what it is given."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from conadv._tree import first_tensor


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is a non-empty floating-point batch."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images are {given}: give a floating-point tensor, standardised as the model sees "
            "it (uint8 images: divide by 255, subtract the mean, divide by the std)."
        )
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}: give (N, ...) with N >= 1.")


def check_loss(loss: Any) -> None:
    """Raise ValueError unless the criterion returned one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"The criterion returned {given}: it must return one number, the mean over the images "
            "it is given (reduction='mean')."
        )


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

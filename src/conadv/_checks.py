"""Argument checks of the attack, and of what it is given."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor


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


def channel_values(name: str, value: Any) -> tuple[float, ...] | float | None:
    """`value` of a mean or std as a tuple of floats, one float, or None."""
    if value is None:
        return None
    values = value.tolist() if hasattr(value, "tolist") else value  # tensors and numpy arrays
    try:
        if isinstance(values, Real):
            values = (values,)
            result: tuple[float, ...] | float = float(values[0])
        else:
            while values and isinstance(values[0], list | tuple):  # shape (C, 1, 1)
                values = [number for row in values for number in row]
            values = result = tuple(float(number) for number in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: give one number per channel, or one number.") from None
    if not values or not all(math.isfinite(number) for number in values):
        raise ValueError(f"{name}={value!r}: every value must be a finite number.")
    return result

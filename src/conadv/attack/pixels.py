"""Small things between standardised images and the numbers that describe them."""

import math
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor


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


def ordinary(tensor: Tensor) -> Tensor:
    """Autograd refuses tensors made in inference mode: copy those."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least: fp16 and bf16 are too coarse to project in."""
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor.detach()
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def towards(values: Tensor, origin: Tensor, dtype: torch.dtype) -> Tensor:
    """Round `values` to `dtype`, never further from `origin`, which `dtype` can hold.

    To the nearest, and back by one place where that went outwards: so a copy in half precision
    stays in every ball and box around its image that it was in.
    """
    rounded = values.to(dtype)
    if rounded.dtype == values.dtype:
        return rounded
    too_far = (rounded.to(values.dtype) - origin).abs() > (values - origin).abs()
    return torch.where(too_far, torch.nextafter(rounded, origin.to(dtype)), rounded)


@lru_cache(maxsize=64)
def channel_tensor(
    values: tuple[float, ...], ndim: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Shape (1, C, 1, ...). Cached: a copy from the host would make the device wait each step."""
    return torch.tensor(values, device=device, dtype=dtype).reshape(1, -1, *([1] * (ndim - 2)))

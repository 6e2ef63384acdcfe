"""What the steps of LARS and LAMB are written in: norms, ratios, torch's multi-tensor operations.

On the CPU lists of tensors are cut into pieces that stay in the cache from one operation to the
next. Nothing here reads a value back from the device, so a CUDA graph can capture it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Number = float | Tensor
"""A float or a tensor with one element and no dimension."""

Norms = tuple[Tensor, Tensor] | None
"""The two norms of a trust ratio: of one parameter without dimensions, of a list with one. None
where there is no such ratio."""

CACHED_ELEMENTS = 1 << 18
"""Elements of each tensor list that are worked on at a time on the CPU."""


def norm(tensor: Tensor) -> Tensor:
    """L2 norm, at least in float32: in half precision the sum of squares overflows."""
    low = tensor.dtype in (torch.float16, torch.bfloat16)
    result: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32 if low else None)
    return result


def guarded(ratio: Tensor, a: Tensor, b: Tensor, trust_clip: float | None) -> Tensor:
    """A trust ratio of the norms a and b, bounded; 1 where either is 0."""
    if trust_clip is not None:
        ratio = torch.clamp(ratio, max=trust_clip)
    return torch.where((a > 0) & (b > 0), ratio, torch.ones_like(ratio))


def norms_of(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each tensor, at least in float32, as one tensor of one dimension."""
    low = tensors[0].dtype in (torch.float16, torch.bfloat16)
    return torch.stack(
        as_list(torch._foreach_norm(tensors, 2, dtype=torch.float32 if low else None))
    )


def add_scaled_(targets: list[Tensor], sources: list[Tensor], scale: Number) -> None:
    """``target += scale * source``; a ``scale`` of one dimension has a value for each tensor."""
    if isinstance(scale, Tensor):
        torch._foreach_addcmul_(targets, sources, one_each(scale, len(targets)))
    else:
        torch._foreach_add_(targets, sources, alpha=scale)


def add_number_(targets: list[Tensor], number: Number) -> None:
    """``target += number``, likewise."""
    if isinstance(number, Tensor):
        torch._foreach_add_(targets, one_each(number, len(targets)))
    else:
        torch._foreach_add_(targets, number)


def part_of(number: Number, part: slice) -> Number:
    """The values for some of the tensors, where there is one for each."""
    return number[part] if isinstance(number, Tensor) and number.ndim else number


def one_each(number: Tensor, count: int) -> list[Tensor]:
    """A tensor without dimensions for each of so many tensors."""
    return list(number.unbind()) if number.ndim else [number] * count


def as_list(tensors: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """The multi-tensor operations return a list or a tuple, depending on the version of torch."""
    return list(tensors)


def pieces(tensors: list[Tensor]) -> Iterator[slice]:
    """Runs of tensors to work on together: what fits the cache on the CPU, all elsewhere."""
    if not tensors:
        return
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(0, len(tensors))
        return
    start, elements = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and elements + tensor.numel() > CACHED_ELEMENTS:
            yield slice(start, index)
            start, elements = index, 0
        elements += tensor.numel()
    yield slice(start, len(tensors))

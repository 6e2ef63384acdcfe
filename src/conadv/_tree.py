"""Rows of nested structures: labels and outputs are tensors, or tuples, lists and dicts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Apply `function` to every tensor of a nested structure; other leaves stay as they are."""
    from torch import Tensor  # here, so that schedules can be looked up without torch

    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, dict):
        mapped = {key: map_tensors(function, value) for key, value in structure.items()}
        # Output classes such as Hugging Face's ModelOutput are dicts with attribute access.
        return mapped if type(structure) is dict else type(structure)(**mapped)
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_tensors(function, value) for value in structure))
    if isinstance(structure, list | tuple):
        return type(structure)(map_tensors(function, value) for value in structure)
    return structure


def rows(structure: Any, start: int, stop: int, total: int) -> Any:
    """Rows [start, stop) of every tensor whose first dimension has `total` rows.

    Tensors of another length (the mixing coefficient beside two label vectors, say) stay whole.
    """

    def cut(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != total:
            return tensor
        return tensor if (start, stop) == (0, total) else tensor[start:stop]

    return map_tensors(cut, structure)


def joined(structures: Sequence[Any], counts: Sequence[int]) -> Any:
    """Nested structures of one form, row by row one after the other: the inverse of `rows`.

    Args:
        structures: of `counts` rows each.
        counts: rows of each structure.

    Raises:
        ValueError: they differ in form, or in something that has no rows.
    """
    import torch
    from torch import Tensor

    first = structures[0]
    if isinstance(first, Tensor):
        with_rows = [
            isinstance(s, Tensor) and s.ndim > 0 and s.shape[0] == count
            for s, count in zip(structures, counts, strict=True)
        ]
        if all(with_rows):
            return torch.cat(list(structures))
        if not all(isinstance(s, Tensor) and torch.equal(s, first) for s in structures[1:]):
            raise ValueError("values that have no rows differ between the parts of the batch")
        return first
    if isinstance(first, dict | list | tuple):
        if any(type(s) is not type(first) or len(s) != len(first) for s in structures):
            raise ValueError("structures differ between the parts of the batch")
        if isinstance(first, dict):
            values = {key: joined([s[key] for s in structures], counts) for key in first}
            return values if type(first) is dict else type(first)(**values)
        listed = [joined(parts, counts) for parts in zip(*structures, strict=True)]
        return type(first)(*listed) if hasattr(first, "_fields") else type(first)(listed)
    if any(s != first for s in structures[1:]):
        raise ValueError("values that have no rows differ between the parts of the batch")
    return first


def first_tensor(structure: Any) -> Tensor | None:
    """The first tensor of a nested structure, or None."""
    from torch import Tensor

    if isinstance(structure, Tensor):
        return structure
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, list | tuple):
        for value in structure:
            found = first_tensor(value)
            if found is not None:
                return found
    return None

"""Rows of nested structures: labels and outputs are tensors, or tuples, lists and dicts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Apply `function` to every tensor of a nested structure; other leaves stay as they are."""
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


def first_tensor(structure: Any) -> Tensor | None:
    """The first tensor of a nested structure, or None."""
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

"""Perturbing what a layer gives: embeddings of text, or the features of any network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conadv._tree import first_tensor, joined, map_tensors

IGNORED = -100
"""The label of added positions: what torch's criteria leave out unless told otherwise."""


class Beside(NamedTuple):
    """What goes with a perturbation of a layer's output."""

    inputs: Any
    """Inputs of the model: a tensor, a tuple or list of positional ones, or a dict of keywords."""
    mask: Tensor | None
    """1 where the output may be perturbed, 0 where not, of shape (N, length)."""
    labels: Any

    @property
    def samples(self) -> int:
        """Samples."""
        first = first_tensor(self.inputs)
        if first is None or first.ndim == 0:
            raise ValueError("The inputs hold no tensor with one row per sample: give some.")
        return int(first.shape[0])

    def padded(self, own: int, length: int) -> Beside:
        """Pad sequences of `own` positions to `length`, on the right.

        Tensors whose second dimension is `own` are sequences: inputs and mask get zeros, integer
        labels -100, other labels zeros.

        Raises:
            ValueError: no mask says which positions are added.
        """
        if own == length:
            return self
        if self.mask is None:
            raise ValueError(
                f"Sequences of {own} and of {length} positions cannot be one batch without an "
                "attention_mask among the inputs, or mask=: give one, or pad all to one length."
            )

        def pad(tensor: Tensor, ignored: int) -> Tensor:
            if tensor.ndim < 2 or tensor.shape[1] != own:
                return tensor
            value = 0 if tensor.is_floating_point() or tensor.dtype == torch.bool else ignored
            more = tensor.new_full((len(tensor), length - own, *tensor.shape[2:]), value)
            return torch.cat([tensor, more], dim=1)

        inputs, mask = map_tensors(lambda t: pad(t, 0), (self.inputs, self.mask))
        return Beside(inputs, mask, map_tensors(lambda t: pad(t, IGNORED), self.labels))


def beside(inputs: Any, mask: Tensor | None, labels: Any) -> Beside:
    """Put together what goes with a perturbation; without a mask the inputs' own counts.

    Raises:
        ValueError: the mask is not of shape (N, length).
    """
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
        own = inputs.get("attention_mask")
        if mask is None and isinstance(own, Tensor) and own.ndim == 2:
            mask = own
    found = Beside(inputs, mask, labels)
    if mask is not None and (mask.ndim != 2 or len(mask) != found.samples):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and there are {found.samples} samples: give "
            "(samples, length), 1 where the layer's output may be perturbed."
        )
    return found


def together(parts: Sequence[Beside]) -> Beside:
    """Inputs and masks of all parts, one below the other; the labels are left to others.

    Raises:
        ValueError: they differ in form.
    """
    counts = [part.samples for part in parts]
    if len({part.mask is None for part in parts}) > 1:
        raise ValueError("Some inputs have a mask and others none: give one always, or never.")
    inputs, mask = joined([(part.inputs, part.mask) for part in parts], counts)
    return Beside(inputs, mask, None)


def masked(point: Tensor, mask: Tensor | None) -> Tensor:
    """`point`, of shape (N, length, ...), with zeros where the mask is 0.

    Raises:
        ValueError: the mask has not the first two dimensions of `point`.
    """
    if mask is None:
        return point
    if mask.shape != point.shape[:2]:
        raise ValueError(
            f"The mask of shape {tuple(mask.shape)} does not fit the layer's output of shape "
            f"{tuple(point.shape)}: it has to be of its first two dimensions."
        )
    return point * mask.reshape(*mask.shape, *[1] * (point.ndim - 2)).to(point.dtype)


class _Reached(Exception):
    """The layer has been reached: the rest of the pass is not needed."""


class Layer:
    """A layer of the model, to whose output a perturbation is added.

    Args:
        module: the model without wrappers.
        name: as in ``module.named_modules()``.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        names = dict(module.named_modules())
        if name not in names or name == "":
            alike = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2] and n]
            known = ", ".join(alike or [n for n in names if n and "." not in n])
            raise ValueError(f"at={name!r}: the model has no such layer. There are {known}.")
        self.name = name
        self._layer = names[name]
        self._adding: tuple[Tensor, Tensor | None] | None = None
        self._handle: RemovableHandle | None = None
        self._shapes: dict[Any, tuple[int, ...]] = {}

    def call(self, model: nn.Module, given: Beside) -> Any:
        """The model's outputs."""
        inputs = given.inputs
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)

    def enter(self, point: Tensor, mask: Tensor | None) -> Any:
        """Add `point` to the layer's output until `leave` is given what is returned."""
        before = self._adding
        self._adding = point, mask
        if self._handle is None:
            self._handle = self._layer.register_forward_hook(self._add)
        return before

    def leave(self, before: Any) -> None:
        """End what `enter` began."""
        self._adding = before
        if before is None and self._handle is not None:
            self._handle.remove()
            self._handle = None

    @contextmanager
    def adding(self, point: Tensor, mask: Tensor | None) -> Iterator[None]:
        """`enter` and `leave`."""
        before = self.enter(point, mask)
        try:
            yield
        finally:
            self.leave(before)

    def _add(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        assert self._adding is not None
        point, mask = self._adding
        if not isinstance(output, Tensor) or output.shape != point.shape:
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"The layer {self.name!r} gave {given} where perturbations of shape "
                f"{tuple(point.shape)} were to be added: between loss() and collect() the model "
                "is for the batch of the round, and the layer's output has to be one tensor."
            )
        return output + masked(point, mask).to(output.dtype)

    def zeros(
        self,
        model: nn.Module,
        given: Beside,
        without_trace: Callable[[], AbstractContextManager[None]],
    ) -> Tensor:
        """No perturbation, in the shape of the layer's output, float32.

        The shape is found by a pass that ends at the layer, once for every shape of inputs.

        Args:
            model: to call.
            given: its inputs.
            without_trace: a block for that pass.

        Raises:
            ValueError: the layer was not reached, or its output has no row per sample.
        """
        shapes: list[Any] = []
        map_tensors(lambda tensor: shapes.append(tuple(tensor.shape)), given.inputs)
        key = tuple(shapes)
        if key not in self._shapes:
            with without_trace():
                self._shapes[key] = self._shape(model, given)
        first = first_tensor(given.inputs)
        assert first is not None
        return torch.zeros(self._shapes[key], device=first.device)

    def _shape(self, model: nn.Module, given: Beside) -> tuple[int, ...]:
        found: list[Any] = []

        def reached(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output)
            raise _Reached

        handle = self._layer.register_forward_hook(reached)
        try:
            with torch.no_grad():
                self.call(model, given)
        except _Reached:
            pass
        finally:
            handle.remove()
        output = found[0] if found else None
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != given.samples:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"at={self.name!r}: the layer gave {what} for {given.samples} samples. It has to "
                "run in the model's forward and give one tensor with a row per sample."
            )
        return tuple(output.shape)

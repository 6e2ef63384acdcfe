"""How much memory autograd keeps for the backward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by what they are for, measured by a dry run or modelled by a plan."""

    weights: float
    """Buffers included."""
    gradients: float
    optimizer: float
    """Its state, an average of the weights, what SAM and variance reduction keep."""
    activations: float
    """Kept for the backward pass of one micro-batch, copies and views included."""
    pending: float
    """Bytes of adversarial copies that wait for their round."""

    @property
    def total(self) -> float:
        """All of it; allocator and workspaces come on top."""
        return float(sum(vars(self).values()))


class SavedBytes:
    """Measures what is kept for backward passes while it is entered; shared storage counts once.

    Tensors of a weight's shape are counted apart: they are casts of weights to a lower precision,
    whose number does not grow with the images. Weights themselves are not counted.

    Args:
        model: Whose weights these are.

    Example:
        >>> with SavedBytes(model) as saved:
        ...     criterion(model(images), labels).backward()
        >>> saved.of_images, saved.of_weights
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        shapes = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}
        self._weights = shapes | {shape[::-1] for shape in shapes}
        self._kept: dict[int, int] = {}
        self._live = [0, 0]
        self.of_images = 0
        """Most bytes at a time that grow with the number of images."""
        self.of_weights = 0
        """Most bytes at a time that do not."""
        self._stack = ExitStack()

    def __enter__(self) -> SavedBytes:
        self._stack.enter_context(saved_tensors_hooks(self._pack, lambda held: held.tensor))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def hold(self, tensor: Tensor) -> None:
        """Autograd keeps a tensor."""
        key = _key(tensor)
        if key in self._own:
            return
        users = self._kept.get(key, 0)
        self._kept[key] = users + 1
        if users == 0:
            self._count(tensor, 1)
            self.of_images = max(self.of_images, self._live[0])
            self.of_weights = max(self.of_weights, self._live[1])

    def release(self, tensor: Tensor) -> None:
        """Note that autograd is done with it."""
        key = _key(tensor)
        users = self._kept.get(key, 0)
        if users == 1:
            del self._kept[key]
            self._count(tensor, -1)
        elif users:
            self._kept[key] = users - 1

    def _count(self, tensor: Tensor, sign: int) -> None:
        kind = int(tuple(tensor.shape) in self._weights)
        self._live[kind] += sign * tensor.untyped_storage().nbytes()


class _Held:
    """What autograd gets in place of a tensor: its end is when the graph lets go of it."""

    def __init__(self, ledger: SavedBytes, tensor: Tensor) -> None:
        self.ledger, self.tensor = ledger, tensor.detach()
        ledger.hold(self.tensor)

    def __del__(self) -> None:
        self.ledger.release(self.tensor)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def bytes_of(thing: object) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    inner: Iterable[object] = ()
    if isinstance(thing, dict):
        inner = thing.values()
    elif isinstance(thing, list | tuple):
        inner = thing
    return sum(bytes_of(value) for value in inner)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of an action and of what it gives the device to do."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""What a model costs, counted without computing: operations, bytes, when gradients are ready."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from conadv.attack.forward import training_mode
from conadv.lab.planning.operations import operation_counter

_FEW, _MORE = 2, 4
"""Images of the two counts from which what grows with the batch is told from what does not."""


@dataclass(frozen=True)
class Network:
    """Figures per image: operations (an addition and a multiplication are two) and bytes."""

    forward: float
    """Operations of a forward pass."""
    train: float
    """Forward, and backward with respect to the weights."""
    recycle: float
    """The same, with the gradient with respect to the images as well."""
    attack: float
    """Forward, and backward with respect to the images alone."""
    parameters: int
    """Values that are trained."""
    ready: tuple[tuple[float, int], ...]
    """(share of the backward pass after which a gradient is ready, its bytes), in that order."""
    saved: float
    """Bytes that a training pass keeps for its backward pass, per image."""
    saved_once: float
    """The same, for any number of images: low-precision copies of the weights."""
    attack_saved: float
    """Bytes that an attack keeps for its backward pass, per image."""
    values: int
    """Values of one image."""
    matrices: int = 0
    """Trained values in tensors of two or more dimensions: those that copies of weights move."""

    @property
    def gradient_bytes(self) -> int:
        """What an all-reduce carries."""
        return sum(size for _, size in self.ready)

    def buckets(self, capacity: float) -> tuple[tuple[float, int], ...]:
        """DistributedDataParallel's buckets: gradients in the order in which they get ready.

        Args:
            capacity: bytes at which a bucket is full; the first one is at 1 MiB already, as in
                DistributedDataParallel, so that communication starts early.

        Returns:
            (share of the backward pass after which a bucket is full, its bytes).
        """
        found: list[tuple[float, int]] = []
        size, share = 0, 0.0
        for share, more in self.ready:
            size += more
            if size >= (capacity if found else min(capacity, 2**20)):
                found.append((share, size))
                size = 0
        return (*found, (share, size)) if size else tuple(found)


def count(
    model: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16
) -> Network:
    """Count a model on tensors without values, so that any size fits into memory.

    Operations are those of `torch.utils.flop_counter`: matrix products and convolutions, with the
    backward pass of grouped convolutions put right.

    Args:
        model: takes images (N, C, H, W), returns logits (N, classes). It is not changed.
        shape: (C, H, W) of an image.
        dtype: of autocast; torch.float32 is none.
    """
    few, more = (_Count(model, shape, dtype, images) for images in (_FEW, _MORE))
    train, saved_few, ready, forward = few.train(with_images=False)
    _, saved_more, _, _ = more.train(with_images=False)
    recycle, _, _, _ = few.train(with_images=True)
    attack, attack_few = few.attack()
    _, attack_more = more.attack()
    saved = (saved_more - saved_few) / (_MORE - _FEW)
    return Network(
        forward=forward / _FEW,
        train=train / _FEW,
        recycle=recycle / _FEW,
        attack=attack / _FEW,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        ready=ready,
        saved=saved,
        saved_once=max(0.0, saved_few - _FEW * saved),
        attack_saved=(attack_more - attack_few) / (_MORE - _FEW),
        values=shape[0] * shape[1] * shape[2],
        matrices=sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim > 1),
    )


class _Count:
    """Passes of one model over so many images, on fake tensors."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype, images: int
    ) -> None:
        self.model, self.shape, self.dtype, self.images = model, shape, dtype, images
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def train(self, with_images: bool) -> tuple[float, float, tuple[tuple[float, int], ...], float]:
        """Operations, bytes saved, when gradients are ready, operations of the forward pass."""
        with self.mode, training_mode(self.model), operation_counter() as counter:
            tensors = self._tensors(with_gradients=True)
            images, labels = self._batch(with_images)
            with _saved(tensors) as saved:
                loss = self._loss(tensors, images, labels)
            forward = counter.get_total_flops()
            done: dict[str, float] = {}

            def note(name: str) -> Callable[[Tensor], None]:
                def hook(_: Tensor) -> None:
                    done[name] = counter.get_total_flops()

                return hook

            for name, tensor in tensors.items():
                if tensor.requires_grad:
                    tensor.register_post_accumulate_grad_hook(note(name))
            loss.backward()
            total = counter.get_total_flops()
        ready = _ready(self.model, done, forward, total)
        return float(total), float(sum(saved.values())), ready, float(forward)

    def attack(self) -> tuple[float, float]:
        """Operations and bytes saved."""
        with self.mode, training_mode(self.model), operation_counter() as counter:
            tensors = self._tensors(with_gradients=False)
            images, labels = self._batch(with_gradient=True)
            with _saved(tensors) as saved:
                loss = self._loss(tensors, images, labels)
            loss.backward()
        return float(counter.get_total_flops()), float(sum(saved.values()))

    def _tensors(self, with_gradients: bool) -> dict[str, Tensor]:
        """Parameters and buffers without values."""
        fakes: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            fake = torch.empty_like(tensor.detach(), device="cpu")
            fakes[name] = fake.requires_grad_(with_gradients and tensor.requires_grad)
        return fakes

    def _batch(self, with_gradient: bool) -> tuple[Tensor, Tensor]:
        images = torch.empty(self.images, *self.shape, requires_grad=with_gradient)
        return images, torch.empty(self.images, dtype=torch.long)

    def _loss(self, tensors: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        lower = self.dtype != torch.float32
        with torch.autocast("cpu", dtype=self.dtype) if lower else nullcontext():
            # A view: the counter's hooks refuse leaves as inputs of a module.
            given = (images.view_as(images),)
            outputs = torch.func.functional_call(self.model, tensors, given)
        return cross_entropy(outputs.float(), labels)


@contextmanager
def _saved(tensors: dict[str, Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps, weights and buffers themselves not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    found: dict[int, int] = {}
    kept: list[Any] = []  # so that no storage is freed and another takes its number

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            kept.append(storage)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _ready(
    model: nn.Module, done: dict[str, float], forward: float, total: float
) -> tuple[tuple[float, int], ...]:
    """Shares of the backward pass; a branch that had no images is ready with the one that had."""
    backward = max(total - forward, 1.0)
    found, last = [], total
    for name, parameter in model.named_parameters():
        last = done.get(name, last)
        if parameter.requires_grad:
            found.append(((last - forward) / backward, parameter.nbytes))
    return tuple(sorted(found, key=lambda entry: entry[0]))

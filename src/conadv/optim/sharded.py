"""Norms of whole tensors of which every rank holds a part.

`torch.distributed.fsdp.fully_shard` (FSDP2) makes the parameters, their gradients and with them
an optimizer's buffers DTensors, cut over the ranks. A step works on this rank's parts alone. Only
the norms behind the trust ratios are those of whole tensors: the squared norms of all parts are
put into one tensor, which is summed over the ranks once in a step.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from conadv.optim.multi_tensor import Norms

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Layout:
    """How a DTensor lies on the ranks."""

    mesh: "DeviceMesh"
    dims: tuple[int, ...]
    """Dimensions of the mesh along which it is cut; in the others ranks hold the same part. Empty
    if every rank holds the whole tensor."""


@dataclass(frozen=True)
class Unfinished:
    """An update that is computed up to the point where it needs norms of whole tensors."""

    norms: Tensor
    """Two norms of each of this rank's parts of tensors, along the last dimension."""
    finish: Callable[[Norms], None]
    """Completes the update, given the norms of the whole tensors."""


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor; asking does not import their module, which takes a while."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def layout_of(p: Tensor) -> Layout | None:
    """Layout of a parameter, or None if it is no DTensor.

    Raises:
        RuntimeError: it is a sum over ranks that is still to be taken.
    """
    if not is_dtensor(p):
        return None
    mesh = p.device_mesh
    if any(placement.is_partial() for placement in p.placements):
        raise RuntimeError(
            f"A parameter of shape {tuple(p.shape)} has the placements {p.placements}: the "
            "optimizer can update sharded and replicated parameters. Redistribute it to "
            "Shard(0) or Replicate() before making the optimizer."
        )
    cut = (i for i, placement in enumerate(p.placements) if not placement.is_replicate())
    return Layout(mesh, tuple(i for i in cut if mesh.size(i) > 1))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; any other tensor is returned as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_gradient(grad: Tensor, p: Tensor) -> Tensor:
    """This rank's part of the gradient of a parameter, cut like the parameter."""
    if is_dtensor(grad) and is_dtensor(p) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return local(grad)


def finish_all(waiting: Iterable[tuple[Layout, Unfinished]]) -> None:
    """Sum the squared norms over the ranks, in float64, and finish the updates.

    Every rank has to call it with updates of the same parameters in the same order. There is one
    all-reduce for each layout (and dimension of its mesh), for most models one in all.
    """
    by_layout: dict[Layout, list[Unfinished]] = {}
    for layout, update in waiting:
        by_layout.setdefault(layout, []).append(update)
    for layout, updates in by_layout.items():
        # Offloaded parameters lie on the CPU, where the mesh's NCCL could not sum them.
        device = torch.device(layout.mesh.device_type)
        flat = [update.norms.flatten().to(device, torch.float64) for update in updates]
        total = torch.cat(flat).square()
        for dim in layout.dims:
            torch.distributed.all_reduce(total, group=layout.mesh.get_group(dim))
        norms = total.sqrt().split([len(part) for part in flat])
        for update, whole in zip(updates, norms, strict=True):
            first, second = whole.to(update.norms).view_as(update.norms).unbind(-1)
            update.finish((first, second))


def check_loaded(params: Iterable[Tensor], states: Iterable[Mapping[str, Any]]) -> None:
    """Check that buffers are DTensors where their parameters are.

    Args:
        params: parameters of the optimizer.
        states: the saved state of each.

    Raises:
        ValueError: they are not.
    """
    for p, state in zip(params, states, strict=False):  # torch checks the number of parameters
        for key, value in state.items():
            if key != "step" and isinstance(value, Tensor) and is_dtensor(value) != is_dtensor(p):
                kinds = ("an ordinary tensor", "a DTensor")
                raise ValueError(
                    f"{key!r} of a parameter of shape {tuple(p.shape)} is "
                    f"{kinds[is_dtensor(value)]}, the parameter is {kinds[is_dtensor(p)]}. Between "
                    "a sharded and a whole model, and between different numbers of ranks, carry "
                    "the state over with get_optimizer_state_dict and set_optimizer_state_dict "
                    "of torch.distributed.checkpoint.state_dict, with "
                    "StateDictOptions(full_state_dict=True)."
                )

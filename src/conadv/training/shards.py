"""Whole tensors from those that ranks hold parts of, and back: checkpoints know no ranks.

So a run may go on with another number of processes, or with whole weights on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from conadv.optim._sharded import is_dtensor


def whole(value: Any, *, keep: bool = True) -> Any:
    """The same nested dicts, lists and tuples, with every DTensor gathered.

    All ranks must call it with the same structure. What was gathered lies in the CPU's memory:
    one whole tensor at a time has to fit on the device. Anything else is returned as it is.

    Args:
        value: of dicts, lists, tuples, tensors and plain values.
        keep: whether this rank wants it; otherwise it only takes part, and empty tensors return.
    """
    if is_dtensor(value):
        full = value.full_tensor().detach()
        return full.cpu() if keep else full.new_empty(0, device="cpu")
    if isinstance(value, Mapping):
        return {key: whole(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep=keep) for item in value)
    return value


def spread(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank holds whole; nothing is communicated.

    Args:
        value: the whole tensor.
        like: cut in the way that the result shall be. If it is no DTensor, ``value`` is returned.
    """
    if not is_dtensor(like) or is_dtensor(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(device=like.device, dtype=value.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def spread_model(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's whole state, cut as its present one is."""
    return {key: spread(value, like[key]) if key in like else value for key, value in state.items()}


def spread_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, its buffers cut as their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    buffers = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=False):
        if number in buffers:
            buffers[number] = {
                key: spread(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in buffers[number].items()
            }
    return {**state, "state": buffers}

"""Models whose passes wait for other ranks: all have to take as many."""

import torch
import torch.distributed as dist
from torch import nn

from conadv.branches.structure import modules_of_kind


class InStep:
    """What ranks tell one another before the passes of a model that communicates in each of them.

    SyncBatchNorm exchanges statistics in every forward and backward pass in training mode. A rank
    with a pass fewer than the others would leave them waiting for ever. Of other models nothing is
    exchanged here.

    Args:
        model: bare.
        group: the ranks that train it; None: all there are.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        waits = modules_of_kind(model, nn.SyncBatchNorm)
        together = bool(waits) and dist.is_available() and dist.is_initialized()
        self._group = (group or dist.group.WORLD) if together else None
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @property
    def needed(self) -> bool:
        """Whether passes wait for other ranks."""
        return self._group is not None

    def missing(self, *counts: int) -> list[int]:
        """How many passes of each kind this rank has fewer than the one that has most.

        All ranks have to call it at the same place. Waits for the device.
        """
        if self._group is None:
            return [0] * len(counts)
        most = torch.tensor(counts, device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._group)
        return [high - own for high, own in zip(most.tolist(), counts, strict=True)]

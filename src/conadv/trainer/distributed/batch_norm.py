"""Running statistics of batch norm on several devices: those that one device would have.

Every rank updates its own running mean and variance with the micro-batches that it sees. One
device sees them all, one after the other: r ← (1 - m) r + m s for each micro-batch's statistic s.
With rank q's share of the step beginning at r₀ and ending at b_q after n_q updates,

    r = (1 - m)^N r₀ + Σ_q (1 - m)^(updates of the ranks after q) (b_q - (1 - m)^n_q r₀)

is what the one device ends with, N being the number of all updates. So ranks agree to the bit,
evaluation and checkpoints are the same on any number of devices, and one small all-reduce does it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class JoinedStatistics:
    """Joins the floating-point buffers of a model over the ranks, once per step.

    Buffers that are no running statistics of an exponential average are averaged.

    Args:
        model: the bare model.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, model: nn.Module, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        layers: list[Any] = [
            layer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm)
            and layer.running_mean is not None
            and layer.num_batches_tracked is not None
            and layer.momentum is not None
        ]
        self._counters: list[Tensor] = [layer.num_batches_tracked for layer in layers]
        self._statistics: list[Tensor] = [
            buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)
        ]
        owned = {id(buffer) for buffer in self._statistics}
        self._others = [b for b in model.buffers() if b.is_floating_point() and id(b) not in owned]
        device = next(model.parameters()).device
        lengths = [2 * layer.num_features for layer in layers]
        self._lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
        keep = torch.tensor([1.0 - layer.momentum for layer in layers], device=device)
        self._keep = keep.repeat_interleave(self._lengths)
        """1 - momentum, for every value."""

    @torch.no_grad()
    def begin(self) -> None:
        """Remember where the step begins: the same on every rank."""
        self._start = self._flat(self._statistics)
        self._before = self._counts()

    @torch.no_grad()
    def undo(self) -> None:
        """Go back to `begin`: the images of this rank do not count."""
        self._put(self._statistics, self._start)
        self._set_counts(self._before)

    @torch.no_grad()
    def updates(self) -> Tensor:
        """How often each layer was updated on this rank since `begin`, shape (layers,)."""
        return self._counts() - self._before

    @torch.no_grad()
    def join(self, updates: Tensor) -> None:
        """Put the joined statistics into the model.

        Args:
            updates: of all ranks, shape (ranks, layers).
        """
        if not self._statistics and not self._others:
            return
        total, own = updates.sum(0), updates[self._rank]
        later = updates[self._rank + 1 :].sum(0)
        change = self._flat(self._statistics) - self._power(own) * self._start
        change *= self._power(later)
        others = self._flat(self._others) / self._size
        flat = torch.cat([change, others])
        dist.all_reduce(flat)
        joined, means = flat.split([len(change), len(others)])
        self._put(self._statistics, joined + self._power(total) * self._start)
        self._put(self._others, means)
        self._set_counts(self._before + total)

    def _power(self, updates: Tensor) -> Tensor:
        """(1 - momentum) to the number of updates, for every value."""
        return self._keep ** updates.to(self._keep.dtype).repeat_interleave(
            self._lengths, output_size=len(self._keep)
        )

    def _counts(self) -> Tensor:
        counts = [counter.double() for counter in self._counters]
        return torch.stack(counts) if counts else self._keep.double()

    def _set_counts(self, counts: Tensor) -> None:
        for counter, count in zip(self._counters, counts.unbind(), strict=True):
            counter.copy_(count)

    def _flat(self, tensors: list[Tensor]) -> Tensor:
        if not tensors:
            return self._keep.new_empty(0)
        return torch.cat([t.detach().flatten().float() for t in tensors])

    def _put(self, tensors: list[Tensor], flat: Tensor) -> None:
        if tensors:
            parts = flat.split([t.numel() for t in tensors])
            values = [p.view_as(t).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]
            torch._foreach_copy_(tensors, values)

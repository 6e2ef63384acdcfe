"""Signs at one bit per value: what a pending L-inf step needs to be kept of a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class PackedSigns:
    """The signs of a tensor: a bit each, and a second one where some are zero.

    An exactly zero gradient has no sign and its value must not move, so a second plane tells zeros
    apart. They are rare. On a CPU the plane is made only if it is needed; a GPU makes it always,
    for asking would wait for the device, and `drop_unneeded` drops it once the answer has arrived.
    """

    bits: Tensor
    """1 where the sign is positive; uint8, 1-dim, eight signs in each."""
    nonzero: Tensor | None
    """1 where there is a sign, packed alike; None: everywhere."""
    shape: tuple[int, ...]
    """Shape of the tensor, in the order in which its values lie in memory."""
    channels_last: bool = False
    """Whether that order is (N, H, W, C) for a tensor of shape (N, C, H, W)."""
    answer: tuple[Tensor, torch.cuda.Event] | None = None
    """Whether `nonzero` can be dropped, in host memory, and the event after which it is there."""

    @classmethod
    def of(cls, signs: Tensor) -> PackedSigns:
        """Pack a tensor of -1, 0 and 1, of any shape. Does not wait for a GPU."""
        last = signs.ndim == 4 and signs.is_contiguous(memory_format=torch.channels_last)
        if last := last and not signs.is_contiguous():
            signs = signs.permute(0, 2, 3, 1)
        bits, flags = _pack(signs > 0), signs != 0
        everywhere = flags.all()
        if signs.device.type == "cpu":
            plane = None if everywhere else _pack(flags)
            return cls(bits, plane, tuple(signs.shape), last)
        packed = cls(bits, _pack(flags), tuple(signs.shape), last)
        if signs.device.type == "cuda":
            # Such a copy goes to pinned memory, so nobody waits for it.
            on_its_way = everywhere.to("cpu", non_blocking=True)
            stream = torch.cuda.current_stream(signs.device)
            packed.answer = (on_its_way, stream.record_event())
        return packed

    def drop_unneeded(self) -> None:
        """Drop the second plane if it is known by now that no sign is zero. Waits for nothing."""
        if self.answer is None:
            return
        everywhere, arrived = self.answer
        if arrived.query():
            self.nonzero = None if everywhere else self.nonzero
            self.answer = None

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """-1, 0 and 1 in the shape of the tensor; on its own device if none is given."""
        signs = self._unpack(self.bits, device).to(dtype).mul_(2).sub_(1)
        if self.nonzero is not None:
            signs *= self._unpack(self.nonzero, device)
        return signs.permute(0, 3, 1, 2) if self.channels_last else signs

    def tensors(self) -> list[Tensor]:
        """What takes memory."""
        return [self.bits] if self.nonzero is None else [self.bits, self.nonzero]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {
            "bits": self.bits,
            "nonzero": self.nonzero,
            "shape": list(self.shape),
            "channels_last": self.channels_last,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> PackedSigns:
        """The inverse of `state_dict`, on `device`."""
        shape, nonzero = tuple(state["shape"]), state["nonzero"]
        # A state may have been taken before the answer was there.
        if nonzero is not None and bool(_unpack(nonzero, math.prod(shape)).all()):
            nonzero = None
        return cls(
            state["bits"].to(device),
            None if nonzero is None else nonzero.to(device),
            shape,
            bool(state["channels_last"]),
        )

    def _unpack(self, plane: Tensor, device: torch.device | None) -> Tensor:
        return _unpack(plane.to(device or plane.device), math.prod(self.shape)).view(self.shape)


def _pack(flags: Tensor) -> Tensor:
    """Eight flags to a byte, the first one highest, the last byte filled up with zeros."""
    flat = flags.reshape(-1)
    if flat.device.type == "cpu":  # numpy is forty times as fast here
        return torch.from_numpy(np.packbits(flat.numpy()))
    return _pack_anywhere(flat)


def _pack_anywhere(flat: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=flat.device)
    return (padded.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, count: int) -> Tensor:
    """The first `count` flags, bool, 1-dim."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count)).bool()
    return _unpack_anywhere(packed, count)


def _unpack_anywhere(packed: Tensor, count: int) -> Tensor:
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(1) >> shifts) & 1).bool().reshape(-1)[:count]

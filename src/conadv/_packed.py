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
    """The signs of a tensor: a bit each, and a second one while some may be zero.

    An exactly zero gradient has no sign and its value must not move, so the second plane tells
    zeros apart. They are rare: `settle` drops the plane where there are none.
    """

    bits: Tensor
    """1 where the sign is positive; uint8, 1-dim, eight signs in each."""
    nonzero: Tensor | None
    """1 where there is a sign, packed alike; None: everywhere."""
    shape: tuple[int, ...]
    """Of the tensor, in the order in which its values lie in memory."""
    channels_last: bool = False
    """Whether that order is (N, H, W, C) for a tensor of shape (N, C, H, W)."""

    @classmethod
    def of(cls, signs: Tensor) -> PackedSigns:
        """Pack a tensor of -1, 0 and 1, of any shape."""
        last = signs.ndim == 4 and signs.is_contiguous(memory_format=torch.channels_last)
        if last := last and not signs.is_contiguous():
            signs = signs.permute(0, 2, 3, 1)
        packed = cls(_pack(signs > 0), _pack(signs != 0), tuple(signs.shape), last)
        if signs.device.type == "cpu":
            packed.settle()
        return packed

    def settle(self) -> None:
        """Drop the second plane if there is no zero. Waits for the device."""
        if self.nonzero is not None and bool(self._unpack(self.nonzero).all()):
            self.nonzero = None

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """-1, 0 and 1 in the shape of the tensor."""
        signs = self._unpack(self.bits).to(dtype).mul_(2).sub_(1)
        if self.nonzero is not None:
            signs *= self._unpack(self.nonzero)
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
        nonzero = state["nonzero"]
        return cls(
            state["bits"].to(device),
            None if nonzero is None else nonzero.to(device),
            tuple(state["shape"]),
            bool(state["channels_last"]),
        )

    def _unpack(self, plane: Tensor) -> Tensor:
        return _unpack(plane, math.prod(self.shape)).view(self.shape)


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

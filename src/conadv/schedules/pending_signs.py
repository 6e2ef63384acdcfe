"""Copies that wait for their round as the signs of a step, one bit per value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conadv._tree import rows
from conadv.schedules.base import Copies, Round
from conadv.schedules.packed_signs import PackedSigns


@dataclass
class PendingSigns:
    """The signs of a step from the first images of a batch, which comes with its round."""

    signs: PackedSigns
    total: int | None
    """Images of that batch; None: not known, in states of development versions."""
    seed: int | None = None
    """State of the stream of an attack that draws radii or starts; it is drawn from again."""

    def copies(self, current: Round) -> Copies:
        """The copies that the signs make of the round's images.

        Raises:
            RuntimeError: the round's batch cannot be the one that was attacked.
        """
        total = len(current.images)
        images = current.images.detach()
        signs = self.signs.unpack(torch.promote_types(images.dtype, torch.float32), images.device)
        origins = images[: len(signs)]
        if origins.shape != signs.shape or self.total not in (None, total):
            of = "" if self.total is None else f" of {self.total} images"
            raise RuntimeError(
                f"Images of shape {tuple(signs.shape)}, from a batch{of}, were attacked for this "
                f"round, whose images have shape {tuple(images.shape)}: what batches() reads "
                "ahead, or peek() is shown, must be the very batch of tau rounds later."
            )
        # The step that the attack took itself, so that the result is the same to the bit.
        start, scales = origins, None
        if self.seed is not None:
            again = torch.Generator(images.device).manual_seed(self.seed)
            scales = current.attack.draw_scales(len(origins), again, images.device)
            start = current.attack.start(origins, again, scales)
        stepped = current.attack.ascend(start, origins, signs, scales)
        return Copies(stepped.images, rows(current.labels, 0, len(signs), total), origins)

    def drop_unneeded(self) -> None:
        """Free what the device has found to be unneeded."""
        self.signs.drop_unneeded()

    def tensors(self) -> list[Tensor]:
        """Those of the signs."""
        return self.signs.tensors()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {**self.signs.state_dict(), "total": self.total, "seed": self.seed}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> PendingSigns:
        """The inverse of `state_dict`, on `device`."""
        signs = PackedSigns.from_state_dict(state, device)
        return cls(signs, state.get("total"), state.get("seed"))

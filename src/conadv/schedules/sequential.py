"""Copies that are made at the moment they are needed: by an attack, or by a coin."""

from __future__ import annotations

from typing import ClassVar

from conadv._tree import rows
from conadv.schedules.base import Copies, Round, Schedule


class Sequential(Schedule):
    """DisAdv: attack the current batch with the current weights, then train on both.

    The attack waits for the last update and the training step waits for the attack: two
    gradients in sequence, 8F per step at share 1.

    Args:
        share: see `Schedule`.
        weight: see `Schedule`.
    """

    name: ClassVar[str] = "sequential"

    def copies(self, round: Round) -> list[Copies]:
        """Copies of this round's own images, at the current weights."""
        total = len(round.images)
        count = self.count(total, round.progress)
        if count == 0:
            return []
        origins = round.images[:count].detach()
        labels = rows(round.labels, 0, count, total)
        perturbed = round.perturb(origins, labels)
        round.report_zero_share(perturbed.zero_share)
        return [Copies(perturbed.images, labels, origins)]


class Noise(Schedule):
    """The control: copies with random-sign noise of the same epsilon instead of an attack.

    What adversarial training gains over this is due to the gradient and not to the noise, the
    second branch or the doubled batch.

    Args:
        share: see `Schedule`.
        weight: see `Schedule`.
    """

    name: ClassVar[str] = "noise"

    def copies(self, round: Round) -> list[Copies]:
        """Noisy copies of this round's own images."""
        total = len(round.images)
        count = self.count(total, round.progress)
        if count == 0:
            return []
        origins = round.images[:count].detach()
        return [Copies(round.noise(origins), rows(round.labels, 0, count, total), origins)]

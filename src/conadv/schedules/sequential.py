"""Copies that are made at the moment they are needed: by an attack, or by a coin."""

from typing import ClassVar

from conadv.schedules.base import Copies, Round, Schedule
from conadv.schedules.facts import Work


class Sequential(Schedule):
    """DisAdv: attack the current batch with the current weights, then train on both.

    The attack waits for the last update and the training step waits for the attack: two
    gradients in sequence, 8F per step at share 1.

    Args:
        share: see `Schedule`.
        weight: see `Schedule`.
    """

    name: ClassVar[str] = "sequential"
    copies_at_once = True

    def work(self, share: float, attack_steps: int = 1) -> Work:
        """Each copy is attacked, and then trained on."""
        return Work(copies=share, attacked=attack_steps * share)

    def copies(self, current: Round) -> list[Copies]:
        """Copies of this round's own images, at the current weights."""
        return attacked_now(self, current)


class Noise(Schedule):
    """The control: copies with random-sign noise of the same epsilon instead of an attack.

    What adversarial training gains over this is due to the gradient and not to the noise, the
    second branch or the doubled batch.

    Args:
        share: see `Schedule`.
        weight: see `Schedule`.
    """

    name: ClassVar[str] = "noise"
    copies_at_once = True
    control: ClassVar[bool] = True

    def copies(self, current: Round) -> list[Copies]:
        """Noisy copies of this round's own images."""
        own = self.own_images(current)
        if own is None:
            return []
        origins, labels = own
        return [Copies(current.noise(origins), labels, origins)]


def attacked_now(schedule: Schedule, current: Round) -> list[Copies]:
    """Copies of the round's own images, attacked at once."""
    own = schedule.own_images(current)
    if own is None:
        return []
    origins, labels = own
    perturbed = current.perturb(origins, labels)
    current.report_zero_share(perturbed.zero_share)
    return [Copies(perturbed.images, labels, origins)]

"""Our schedule: the input gradients come out of the backward pass that training does anyway."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from conadv._nested import rows
from conadv.attack import Attack
from conadv.schedules._base import Copies, Round, Schedule, Scheduled

Budget = Literal["extra", "fixed"]


class Recycled(Schedule):
    """Adversarial copies for the next step from the clean backward pass of this one.

    The clean backward visits every layer already; asking it for the gradient with respect to the
    images as well costs one input gradient of the first layer. A sign step along it gives copies
    that are trained on in the next round: the staleness of lookahead with tau = 1 and no attack
    pass at all. Micro-batches of one accumulated step share their weights, so there the copies
    are not even stale.

    Args:
        share: ``budget="extra"``: share of the images that get a copy, in [0, 1].
            ``budget="fixed"``: share of the *model's batch* that is copies, in [0, 0.5] (0.5
            times `refine` at most, and below 1): p of every batch are copies of recent images and
            1 - p fresh. May be a function of progress.
        weight: see `Schedule`.
        budget: ``"extra"`` adds the copies to the batch (6F at share 1, against 3F for vanilla);
            ``"fixed"`` keeps the number of images per step: the loader hands over
            ``adversary.fresh_images(n)`` and a step costs what a vanilla step of n costs.
        refine: gradient steps that a copy takes in its life. With more than one, a copy stays for
            as many rounds and its own backward, through the adversarial branch, gives its next
            step for free: a k-step attack as a pipeline over k rounds. Each round
            1/refine of the copies retire and as many new ones enter. Give the attack a step_size.

    The first round trains on clean images alone; the pipeline is full after `refine` rounds.

    Raises:
        ValueError: arguments outside the ranges above; on binding, an attack that a recycled
            gradient cannot serve.
    """

    name: ClassVar[str] = "recycled"

    def __init__(
        self,
        share: Scheduled | None = None,
        weight: Scheduled | None = None,
        budget: Budget = "extra",
        refine: int = 1,
    ) -> None:
        if budget not in ("extra", "fixed"):
            raise ValueError(f"budget={budget!r}: allowed are 'extra' and 'fixed'.")
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 1:
            raise ValueError(f"refine={refine!r}: give a whole number of gradient steps, from 1.")
        self.budget: Budget = budget
        self.refine = refine
        self._pending: list[Copies] = []
        if share is None:
            share = 1.0 if budget == "extra" else 0.25
        super().__init__(share, weight)

    def share_at(self, progress: float) -> float:
        """Share of copies at this point of training; see the class for what it is a share of."""
        share = super().share_at(progress)
        limit = 1.0 if self.budget == "extra" else self.refine / (1 + self.refine)
        if share > limit:
            raise ValueError(
                f"share={share:g} with budget='fixed' and refine={self.refine}: at most "
                f"{limit:g}, for every copy needs an image of a recent batch to come from."
            )
        return share

    def count(self, images: int, progress: float) -> int:
        """How many copies accompany `images` fresh ones."""
        if self.budget == "extra" or not self.active(progress):
            return super().count(images, progress)
        share = self.share_at(progress)
        return round(images * share / (1 - share))

    def fresh_images(self, total: int) -> int:
        """Fresh images per step: all of them, or with a fixed budget what the copies leave.

        Raises:
            ValueError: the share changes over training, so that no one number fits.
        """
        if self.budget == "extra":
            return total
        if callable(self.share):
            raise ValueError(
                "share follows a schedule: with budget='fixed' the number of fresh images would "
                "change from step to step. Give share as one number, or use budget='extra'."
            )
        return total - round(total * self.share_at(0.0))

    def resolve(self, attack: Attack, clean_branch: str, adversarial_branch: str) -> Attack:
        """Refuse what the gradient of the clean training pass cannot be.

        Raises:
            ValueError: naming the setting, the reason and the remedy.
        """
        because = "recycled takes the gradient of the clean training pass"
        remedy = "use schedule='sequential' or 'lookahead' for that"
        if attack.target is not None:
            raise ValueError(
                f"target={attack.target!r}: {because}, whose labels are the true ones, so the "
                f"attack is untargeted by nature; {remedy}."
            )
        if attack.branch not in (None, clean_branch):
            raise ValueError(
                f"branch={attack.branch!r}: {because}, which goes through {clean_branch!r}; "
                f"{remedy}."
            )
        if attack.mode == "eval":
            raise ValueError(f"mode='eval': {because}, which runs in training mode; {remedy}.")
        if attack.random_start > 0:
            raise ValueError(
                f"random_start={attack.random_start:g}: {because}, taken at the images "
                f"themselves; {remedy}."
            )
        if attack.steps > 1:
            raise ValueError(
                f"steps={attack.steps}: {because}, and that is one gradient; use "
                f"Recycled(refine={attack.steps}), which spreads the steps over as many rounds."
            )
        return replace(attack, branch=clean_branch)

    def wants_gradient(self, progress: float) -> bool:
        """Always, while copies are being made."""
        return self.active(progress)

    def wants_copy_gradients(self) -> bool:
        """Only to refine them."""
        return self.refine > 1

    def copies(self, round: Round) -> list[Copies]:
        """What earlier rounds left pending."""
        return list(self._pending) if self.active(round.progress) else []

    def collect(self, round: Round) -> None:
        """Step the copies that are still to be refined, and make new ones from clean images."""
        pending: list[Copies] = []
        for old, gradient in zip(round.copies, round.copy_gradients, strict=True):
            if old.age >= self.refine or gradient is None:
                continue
            assert old.origins is not None
            stepped = round.attack.ascend(old.images, old.origins, gradient)
            pending.append(Copies(stepped.images, old.labels, old.origins, old.age + 1))
        total = len(round.images)
        count = min(total, -(-self.count(total, round.progress) // self.refine))
        if count and round.clean_gradient is not None:
            origins = round.images[:count].detach()
            stepped = round.attack.ascend(origins, origins, round.clean_gradient[:count])
            round.report_zero_share(stepped.zero_share)
            keep = origins if self.refine > 1 or round.keep_origins else None
            labels = rows(round.labels, 0, count, total)
            pending.append(Copies(stepped.images, labels, keep, 1))
        self._pending = pending

    def skip(self) -> None:
        """Drop the copies: their gradients, and maybe they themselves, are not finite."""
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """The copies of the next round."""
        return {"pending": [copies.state_dict() for copies in self._pending]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the copies of the next round."""
        self._pending = [Copies.from_state_dict(c, device) for c in state["pending"]]

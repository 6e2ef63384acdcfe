"""Our schedule: the input gradients come out of the backward pass that training does anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from conadv._tree import rows
from conadv.schedules.base import Copies, Round, Schedule, Scheduled, own_labels
from conadv.schedules.facts import Setting, Work

if TYPE_CHECKING:
    import torch

    from conadv.attack import Attack

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
            1/refine of the copies retire and as many new ones enter. An attack without a
            step_size takes 2.5 * epsilon / refine, as in Madry et al.

    The first round trains on clean images alone; the pipeline is full after `refine` rounds.

    The gradient is of the loss as it is trained on: where clean images and copies share batch
    statistics (``statistics="affine"`` or ``"shared"``), the copies' loss has a part in it.

    Raises:
        ValueError: arguments outside the ranges above; on binding, an attack that a recycled
            gradient cannot serve.
    """

    name: ClassVar[str] = "recycled"
    settings: ClassVar[Mapping[str, Setting]] = {
        "budget": Setting(
            "extra",
            "Copies come on top of the fresh images, or take the place of some.",
            choices=("extra", "fixed"),
        ),
        "refine": Setting(1, "Gradient steps in the life of a copy.", low=1, high=64),
    }
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recycled-budget": {"budget": "fixed"}}

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
        super().__init__(self.default_share(budget=budget) if share is None else share, weight)

    @classmethod
    def default_share(cls, **settings: Any) -> float:
        """A share of 1 is impossible with a fixed budget: there it is 0.25."""
        return 0.25 if settings.get("budget") == "fixed" else 1.0

    @property
    def filled_after(self) -> int:
        """A cohort enters in each round, and stays for `refine` of them."""
        return self.refine

    @property
    def label(self) -> str:
        """Label with the budget, where it is fixed."""
        return f"{self.name}, fixed budget" if self.budget == "fixed" else self.name

    def work(self, share: float, attack_steps: int = 1) -> Work:
        """Count no attack: the clean images' backward goes on to the pixels, refined ones' too."""
        fresh = 1.0 if self.budget == "extra" else 1.0 - share
        return Work(fresh, share, 0.0, fresh + (share if self.refine > 1 else 0.0))

    def pending_bytes(self, signs: bool) -> float:
        """One round's copies in single precision."""
        return 4.0

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
        return self._copies_beside(images, self.share_at(progress))

    @staticmethod
    def _copies_beside(fresh: int, share: float) -> int:
        """The most copies that are no more than `share` of the batch they make up."""
        return math.floor(fresh * share / (1 - share) + 1e-6)

    def weight_at(self, progress: float) -> float | None:
        """Weight of the copies' mean loss; below 1, for the clean loss gives the gradient."""
        weight = super().weight_at(progress)
        if weight == 1:
            raise ValueError(
                f"weight=1 at progress {progress:g}: recycled takes the gradient of the clean "
                "loss, which has no weight left then. Give a weight below 1, or use "
                "schedule='sequential' or 'lookahead'."
            )
        return weight

    def fresh_images(self, total: int) -> int:
        """Fresh images per step: all of them, or with a fixed budget what the copies leave.

        With the copies that accompany them they are `total` images where total * share is a
        whole number, and otherwise `total` or a few less, never more.

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
        share = self.share_at(0.0) if self.active(0.0) else 0.0
        fresh = total - math.floor(total * share)
        while fresh + self._copies_beside(fresh, share) > total:
            fresh -= 1
        return fresh

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
        step_size = attack.step_size
        if step_size is None and self.refine > 1 and attack.epsilon > 0:
            step_size = 2.5 * attack.epsilon / self.refine
        return replace(attack, branch=clean_branch, step_size=step_size)

    def wants_gradient(self, progress: float) -> bool:
        """True as long as copies are being made."""
        return self.active(progress)

    def wants_copy_gradients(self) -> bool:
        """True only where copies are refined."""
        return self.refine > 1

    def copies(self, current: Round) -> list[Copies]:
        """What earlier rounds left pending."""
        return list(self._pending) if self.active(current.progress) else []

    def collect(self, current: Round) -> None:
        """Step the copies that are still to be refined, and make new ones from clean images."""
        pending: list[Copies] = []
        for old, gradient in zip(current.copies, current.copy_gradients, strict=True):
            if old.age >= self.refine or gradient is None:
                continue
            assert old.origins is not None
            stepped = current.attack.ascend(old.images, old.origins, gradient, old.scales)
            pending.append(replace(old, images=stepped.images, age=old.age + 1))
        total = len(current.images)
        wanted = self.count(total, current.progress)
        # One cohort per round, until together they are as many as wanted; then those that
        # retire are replaced.
        cohort = -(-wanted // self.refine)
        count = max(0, min(total, cohort, wanted - sum(map(len, pending))))
        if count and current.clean_gradient is not None:
            origins = rows(current.images, 0, count, total).detach()
            scales = current.draw_scales(count)
            gradient = rows(current.clean_gradient, 0, count, total)
            stepped = current.attack.ascend(origins, origins, gradient, scales)
            current.report_zero_share(stepped.zero_share, stepped.nan_share)
            keep = origins.clone() if self.refine > 1 or current.keep_origins else None
            labels = own_labels(current.labels, count, total)
            again = scales if self.refine > 1 else None
            pending.append(Copies(stepped.images, labels, keep, 1, again))
        self._pending = pending

    def skip(self) -> None:
        """Drop the copies: their gradients, and maybe they themselves, are not finite."""
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """The copies of the next round."""
        pending = [copies.state_dict() for copies in self._pending]
        return {"pending": pending, "refine": self.refine}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the copies of the next round.

        Raises:
            ValueError: they were made for another `refine`.
        """
        if state["refine"] != self.refine:
            raise ValueError(
                f"The state holds copies for refine={state['refine']}, this schedule has "
                f"refine={self.refine}: continue with the one that the run began with."
            )
        self._pending = [Copies.from_state_dict(c, device) for c in state["pending"]]

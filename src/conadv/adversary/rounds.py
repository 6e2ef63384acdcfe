"""One round after another: begun, collected, void, or taken back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from conadv._tree import map_tensors, rows
from conadv.adversary.after_backward import finished_steps
from conadv.adversary.checks import check_leaves, checking
from conadv.adversary.mixing import Part, padded_together, parameters_without_images
from conadv.adversary.notices import Notices, TrainedBranches
from conadv.adversary.read_ahead import ReadAhead
from conadv.adversary.round import Again, Diagnostics, RoundState
from conadv.adversary.state import Continued
from conadv.attack import Attack, Criterion
from conadv.attack.checks import check_images, check_rows
from conadv.attack.layer import Beside, beside
from conadv.attack.pixels import ordinary
from conadv.branches.routing import Router

PREVIEW_IMAGES = 16
"""How many of the last copies `Adversary.preview` holds."""
ZERO_CHECK_EVERY = 100
"""Rounds between two looks at the share of zero gradients: each waits for the device."""


class Rounds(Continued):
    """What an `Adversary` does in a round, without its forward pass."""

    attack: Attack
    clean_branch: str
    adversarial_branch: str
    auto_collect: bool
    track_agreement: bool
    key: int | None
    diagnostics: Diagnostics
    preview: tuple[Tensor | None, Tensor, Any] | None
    _routers: list[Router]
    _ahead: ReadAhead
    _again: Again | None
    _notices: Notices
    _trained: TrainedBranches
    _checked: bool

    # -- what ends a round ---------------------------------------------------------------------

    def collect(self) -> None:
        """Take the input gradients and prepare the copies of later rounds.

        Call it after `backward` and before the optimizer's step.

        Raises:
            RuntimeError: loss() was not called, or backward has not run.
        """
        if self._round is not None:
            self._collect(self._round)
        elif self._again is None:
            raise RuntimeError("collect() without a loss(): call loss(), backward(), collect().")
        self._again = None  # a round that was collected by itself is final with this

    def skip(self) -> None:
        """Take the place of `collect` where the round is void (NaN loss): nothing of it is kept.

        Without a `loss` before it, a round is left out altogether. With ``auto_collect=True`` it
        takes the place of the round whose backward has just ended, until the optimizer's step.
        """
        if self._again is not None and self._again.steps == finished_steps.count:
            self._begin_again(self._again)
        self.schedule.skip()
        self._end_round()

    def idle(self) -> None:
        """A round without images, in place of `loss` and `collect`: nothing is trained or attacked.

        For a device that has fewer micro-batches in a short last step than others. Lookahead drops
        what was made for this round; recycled keeps what is pending.

        Raises:
            RuntimeError: in the middle of a round.
        """
        if self._round is not None:
            raise RuntimeError("idle() after loss(): finish the round with collect() or skip().")
        self.schedule.idle()
        self._end_round()

    def restart(self) -> None:
        """Forget the evaluation under way: the next `loss` begins its round anew.

        Of itself so does a `loss` of the same images; another batch in its place would look like
        a forgotten `collect`.
        """
        if self._round is not None:
            self.compute += self._round.compute  # what it cost was paid
            self._forget_round()

    # -- a round -------------------------------------------------------------------------------

    def _begin(
        self,
        images: Any,
        labels: Any,
        criterion: Criterion,
        views: Mapping[str, tuple[Tensor, Any]] | None,
        mask: Tensor | None,
    ) -> RoundState:
        """A round up to its forward: what it is given is checked, its parts are put together."""
        inputs = self._at_layer(images, labels, views, mask)
        if inputs is None:
            check_images(images)
            check_leaves(images)
            check_rows(images, labels)
        again = self._again
        if again is not None and again.given is images and again.steps == finished_steps.count:
            self._begin_again(again)
        self._again = None
        given = images
        if self._round is not None:
            self._notices.of_uncollected(self._round, given)
            self.restart()
        if inputs is not None:
            images, labels = self._bare.no_perturbation(inputs), tuple(inputs)
            check_rows(images, inputs.labels)
        images, labels = ordinary(images), map_tensors(ordinary, labels)
        for _ in range(self._ahead.begin_round(images)):  # batches that the loop left out
            self.schedule.skip()
            self._ahead.shift()
        if not self._checked:
            self._notices.of_units(self.attack, images)
        self._trained.look(self._notices)
        for router in self._routers:
            router.forget()
        current = RoundState(
            self._bare,
            self.attack,
            self._streams,
            self._rounds if self.key is None else self.key,
            self.key is None,
            images,
            labels,
            criterion if self._checked else checking(criterion),
            self.progress,
            self.track_agreement,
            self._ahead.future,
            given,
        )
        if self._ahead.is_foreign(images) and self.schedule.active(self.progress):
            if not self._ahead.was_left:
                self._notices.of_foreign_images()
        else:
            current.copies = self.schedule.copies(current)
        current.parts = self._parts(current, views)
        return current

    def _at_layer(
        self,
        inputs: Any,
        labels: Any,
        views: Mapping[str, tuple[Tensor, Any]] | None,
        mask: Tensor | None,
    ) -> Beside | None:
        """What goes with perturbations of a layer, or None where images are perturbed."""
        if self.attack.at is None:
            if mask is not None:
                raise ValueError("mask= says where a layer may be perturbed: give Attack(at=...).")
            return None
        if views:
            raise ValueError("views are of images: with Attack(at=...) give all rows in one call.")
        map_tensors(check_leaves, inputs)
        return beside(inputs, mask, labels)

    def _collect(self, current: RoundState) -> None:
        """Take the input gradients and let the schedule prepare later rounds."""
        current.take_gradients()
        agreement = current.agreement() if self.track_agreement else None
        self.schedule.collect(current)
        current.count_nans()
        self.diagnostics = replace(
            self.diagnostics,
            zero_share=current.zero_share,
            nan_share=current.nan_share,
            agreement=agreement,
            compute=current.compute,
        )
        self._keep_preview(current)
        self._look_at(current)
        self.images += len(current.images)
        self._end_round(attacked=True)

    def _end_round(self, *, attacked: bool = False) -> None:
        if self._round is not None:
            self.compute += self._round.compute
        self._forget_round()
        self._ahead.end_round(attacked=attacked)
        self._rounds += 1

    # -- rounds that are collected by themselves -------------------------------------------------

    def _backward_ended(self, current: RoundState) -> None:
        """Collect, unless the pass was another round's, a second one or one for some gradients."""
        if not self.auto_collect or self._round is not current or not current.has_gradients:
            return
        again = Again(
            current.given,
            finished_steps.count,
            self.schedule.state_dict(),
            self._rounds,
            self.images,
            self._ahead.remember(),
        )
        self._collect(current)
        self._again = again

    def _begin_again(self, again: Again) -> None:
        """Take a collected round back: a closure evaluates it once more, or it is void."""
        device = next(self._bare.module.parameters()).device
        self.schedule.load_state_dict(again.schedule, device)
        self._rounds, self.images = again.rounds, again.images
        self._ahead.restore(again.ahead)
        self._again = None

    def _forget_round(self) -> None:
        super()._forget_round()
        self._again = None

    def _without_images(self, parts: list[Part]) -> list[nn.Parameter]:
        names = {name for router in self._routers for name in router.branches}
        present = {part.branch for part in parts}
        return [] if names <= present else parameters_without_images(self._bare.module, present)

    def _parts(
        self, current: RoundState, views: Mapping[str, tuple[Tensor, Any]] | None
    ) -> list[Part]:
        wants = self.schedule.wants_gradient(self.progress)
        parts = [Part(self.clean_branch, current.images, current.labels, False, wants)]
        for branch, (images, labels) in (views or {}).items():
            check_images(images)
            check_leaves(images)
            check_rows(images, labels)
            labels = map_tensors(ordinary, labels)
            parts.append(Part(branch, ordinary(images), labels, False))
        refine = self.schedule.wants_copy_gradients()
        for copies in current.copies:
            parts.append(Part(self.adversarial_branch, copies.images, copies.labels, True, refine))
        return parts if self._bare.layer is None else padded_together(parts)

    def _keep_preview(self, current: RoundState) -> None:
        if not current.copies:
            return
        copies = current.copies[-1]
        few = min(PREVIEW_IMAGES, len(copies))
        origins = None if copies.origins is None else copies.origins[:few].clone()
        labels = copies.labels if self._bare.layer is None else copies.labels[-1]
        labels = rows(labels, 0, few, len(copies))
        self.preview = (origins, copies.images[:few].clone(), labels)

    def _look_at(self, current: RoundState) -> None:
        """Look now and then: an attack that went out, or never began, must not stay unseen."""
        ahead = self._ahead
        if ahead.ahead and not ahead.ever_shown and ahead.rounds >= ahead.ahead:
            self._notices.of_unseen_batches()
        if current.zero_share is None or self._rounds % ZERO_CHECK_EVERY:
            return
        # At a layer masked positions have no gradient, and are meant to have none.
        zeros = float(current.zero_share) if self._bare.layer is None else 0.0
        self._notices.of_gradient(zeros, float(current.nan_share or 0.0))

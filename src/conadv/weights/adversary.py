"""The object a user holds: clean passes and passes at moved weights, one loss, what is pending."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conadv._tree import map_tensors, rows
from conadv.adversary import Adversary, Diagnostics
from conadv.adversary.checks import check_branch, checking
from conadv.adversary.mixing import (
    buffers_as_they_are,
    find_distributed,
    parameters_without_images,
    with_zero_gradients,
)
from conadv.adversary.notices import Notices
from conadv.adversary.read_ahead import ReadAhead
from conadv.adversary.round import Streams
from conadv.attack import Attack, Criterion
from conadv.attack.checks import check_images, check_rows, loss_of
from conadv.attack.pixels import ordinary
from conadv.branches import route
from conadv.branches.branches import find_routers
from conadv.branches.wrappers import unwrap
from conadv.schedules import Vanilla
from conadv.weights.attack import WeightAttack
from conadv.weights.checks import check_together
from conadv.weights.pending import Kept, Pending
from conadv.weights.round import Passes, RoundState, Term
from conadv.weights.schedules import Copy, MicroBatch, WeightSchedule, resolve_schedule
from conadv.weights.state import Continued
from conadv.weights.substitution import GivenGradients, refuse_reentrant, tap

Views = Mapping[str, tuple[Tensor, Any]]


class WeightAdversary(Continued):
    """Concurrent adversarial learning with copies of the weights, for a loop of your own.

    Each round trains on the images given, and on micro-batches at weights that are moved uphill
    along a gradient of their own, in one loss. Where that gradient comes from is the schedule's
    affair. The weights themselves are never written to: a pass at w + e is given other tensors.

    Args:
        model: bare, in DDP, or compiled; split with `split_norms` or not.
        attack: what one perturbation is.
        schedule: a name (``"none"``, ``"sequential"``, ``"recycled"``, ``"lookahead"``,
            ``"slot"``, ``"noise"``) or an object of `conadv.weights`.
        adversary: copies of images as well: an `Adversary` on the same model, which then makes
            the clean part of the loss. Use it through this object only. One call of `loss` is one
            micro-batch then, unless its schedule makes no copies.
        rounds: calls of `loss` between two steps of the optimizer, on each rank. With
            accumulation the object has to know where a step ends.
        seed: of its random streams.

    Raises:
        ValueError: arguments that do not go together, or a model in ``fully_shard``.

    Example:
        >>> adversary = WeightAdversary(model, WeightAttack(rho=0.01, micro_batch=125))
        >>> for images, labels in adversary.batches(loader):
        ...     loss = adversary.loss(images, labels, criterion)
        ...     loss.backward()
        ...     adversary.collect()
        ...     optimizer.step()
        ...     optimizer.zero_grad(set_to_none=True)
    """

    def __init__(
        self,
        model: nn.Module,
        attack: WeightAttack,
        schedule: str | WeightSchedule = "recycled",
        *,
        adversary: Adversary | None = None,
        rounds: int = 1,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.attack = attack
        self.schedule = resolve_schedule(schedule)
        self.rounds = rounds
        self._alone = adversary is None or not adversary.schedule.makes_copies
        self.adversary = adversary or Adversary(model, Attack(0.0, pixel_range=None), Vanilla())
        """Makes the clean part of the loss."""
        bare = unwrap(model)[0]
        self._routers = find_routers(bare)
        self.clean_branch = self.adversary.clean_branch
        branch = attack.branch or self.clean_branch
        self.centred = self.schedule.centred if attack.centred is None else attack.centred
        check_together(model, attack, self.schedule, self.centred, adversary, rounds)
        if attack.branch is not None:
            check_branch(self._routers, attack.branch, "WeightAttack(branch=...)")
        wrapper = find_distributed(model)
        group = None if wrapper is None else wrapper.process_group
        streams = Streams(seed)
        self._passes = Passes(model, bare, attack, self.clean_branch, branch, streams, group)
        delay = self.schedule.delay(rounds)
        centres = self.centred and delay > 0
        self._pending = Pending(self._passes.space, rounds, delay, centres, attack.dtype, group)
        self.progress = 0.0
        """Share of training done, in [0, 1]: set it each step if a setting follows it."""
        self.images = 0
        """Fresh images given so far."""
        self.key: int | None = None
        """Names the round in the random streams, and its place where a share is chosen; see
        `Adversary.key`."""
        self.diagnostics = Diagnostics()
        self._compute = 0.0
        self._micro_batches = 0
        self._round: RoundState | None = None
        self._ahead = ReadAhead(self.schedule.reads_ahead(rounds))
        self._notices = Notices()

    @property
    def compute(self) -> float:
        """Total cost so far, in units of one forward and backward over one image."""
        return self._compute + self.adversary.compute

    @property
    def reads_ahead(self) -> int:
        """The batch of how many rounds later `batches` and `peek` show; 0 with most schedules."""
        return self._ahead.ahead or self.adversary.schedule.reads_ahead

    @property
    def preview(self) -> Any:
        """Some of the last copies of images, see `Adversary.preview`."""
        return self.adversary.preview

    # -- the loop ------------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Pass the loader's batches through; see `Adversary.batches`."""
        return self._ahead.batches(self.adversary.batches(loader))

    def peek(self, images: Tensor, labels: Any) -> None:
        """Show lookahead the batch of `tau` steps later; see `Adversary.peek`."""
        if self._ahead.ahead:
            self._ahead.show((images, labels))
        else:
            self.adversary.peek(images, labels)

    def fresh_images(self, total: int) -> int:
        """How many images the loader should give so that a step's budget is `total` images."""
        return self.adversary.fresh_images(self.schedule.fresh_images(total))

    def loss(
        self,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        *,
        fraction: float = 1.0,
        views: Views | None = None,
    ) -> Tensor:
        """Loss of the images and of the passes at moved weights, ready for backward.

        Called again before `collect` it begins the same round anew; see `Adversary.loss`.

        Args:
            images: clean images, standardised, shape (N, C, H, W).
            labels: what `criterion` takes.
            criterion: ``criterion(outputs, labels)`` -> mean loss over the images it is given.
            fraction: factor on the loss: the images of this call over those of the step.
            views: further views, {branch: (images, labels)}, a part of the clean loss.

        Returns:
            0-dim tensor: (1 - weight) * clean + weight * perturbed, times `fraction`.

        Raises:
            ValueError: as `Adversary.loss`; no clean part where one is needed.
        """
        check_images(images)
        check_rows(images, labels)
        images, labels = ordinary(images), map_tensors(ordinary, labels)
        due = self._due(images)
        if self._round is not None:  # begun anew: what it cost was paid
            self._compute += self._round.compute
            self.adversary.restart()
        self.adversary.progress, self.adversary.key = self.progress, self.key
        self._round = current = self._begin(images, labels, criterion, fraction, due)
        if self._is_active():
            current.copies = self.schedule.copies(current)
        for batch, factor in current.clean_factors():
            self._clean_pass(current, batch, factor, views)
        if views and not current.has_clean_pass:
            raise ValueError(
                f"views={list(views)}: further views are a part of the clean loss, which has no "
                f"weight in this round. Give schedule {self.schedule.name!r} a weight below 1."
            )
        for copy, factor in current.copy_factors():
            self._moved_pass(current, copy, factor)
        loss = torch.stack([term.loss for term in current.terms]).sum() * fraction
        if not self._passes.checked:
            refuse_reentrant(loss)
        if loss.requires_grad:
            loss = self._with_zeros(current, loss)
            loss.register_hook(lambda factor: setattr(current, "factor", factor.detach().float()))
        self._passes.checked = True
        self._diagnose(current)
        return loss

    def collect(self) -> None:
        """Take the gradients that the backward left, and prepare later rounds.

        Call it after `backward` and before the optimizer's step.

        Raises:
            RuntimeError: loss() was not called, or backward has not run.
        """
        current = self._round
        if current is None:
            raise RuntimeError("collect() without a loss(): call loss(), backward(), collect().")
        current.take_gradients()
        if current.has_clean_pass:
            self.adversary.collect()
        kept: list[Kept] = []
        if self._is_active():
            current.future = self._later(current)
            with current.autocast():
                kept = self.schedule.collect(current)
            for one in current.tapped.values() if self.schedule.takes else kept:
                if current.fraction and one.gradient is not None:
                    self._pending.count(one)
        self._diagnose(current)
        self.images += sum(len(batch.images) for batch in current.micro_batches)
        self._end_round(kept)

    def skip(self) -> None:
        """Instead of `collect`, where the round is void (NaN loss): nothing of it is kept.

        Without a `loss` before it, a round is left out altogether.
        """
        self.adversary.skip()
        self._end_round([])

    def idle(self) -> None:
        """A round without images, in place of `loss` and `collect`; see `Adversary.idle`.

        Raises:
            RuntimeError: in the middle of a round.
        """
        if self._round is not None:
            raise RuntimeError("idle() after loss(): finish the round with collect() or skip().")
        self.adversary.idle()
        self._end_round([])

    def _end_round(self, kept: list[Kept]) -> None:
        if self._round is not None:
            self._compute += self._round.compute
            self._micro_batches += len(self._round.micro_batches)
        self._round = None
        self._pending.end_round(kept, share_mean=self._is_active())
        self._ahead.end_round(attacked=bool(kept))

    def wait_within(self, waiting: Callable[[], AbstractContextManager[Any]]) -> None:
        """Enter `waiting()` around waits for other ranks: a watchdog is to know of them."""
        self._pending.waiting = waiting

    # -- inside --------------------------------------------------------------------------------

    def _due(self, images: Tensor) -> list[Kept]:
        """What was kept for this round: for the very images that it is given."""
        for _ in range(self._ahead.begin_round(images)):  # batches that the loop left out
            self._pending.leave_out()
            self._ahead.shift()
        due = self._pending.due()
        if not self._ahead.is_foreign(images):
            return due
        if not self._ahead.was_left:
            self._notices.of_foreign_images()
        return []

    def _is_active(self) -> bool:
        return self.schedule.active(self.progress)

    def _weight(self) -> float | None:
        """Of passes at moved weights, where the images' adversary needs the rest."""
        if self._alone:
            return self.schedule.weight_at(self.progress)
        if self.schedule.weight is None and self.schedule.default_weight is not None:
            return 0.5
        weight = self.schedule.weight_at(self.progress)
        if weight == 1:
            raise ValueError(
                f"weight=1 at progress {self.progress:g}: the clean part of the loss, which "
                "adversary= makes, has no weight left then. Give a weight below 1."
            )
        return weight

    def _begin(
        self, images: Tensor, labels: Any, criterion: Criterion, fraction: float, due: list[Kept]
    ) -> RoundState:
        weight = self._weight()
        batches = self._cut(images, labels)
        if not self._passes.checked:
            criterion = checking(criterion)
            if self._pending.centred and self._is_one_micro_batch(batches):
                raise ValueError(
                    f"{len(images)} images are the only micro-batch of a step: centred=True "
                    "leaves nothing of its gradient. Cut it with WeightAttack(micro_batch=...), "
                    "accumulate (rounds=...), or give centred=False."
                )
        # Whose ascents are the only passes of their images at the weights themselves.
        only_ascents = self._alone and (
            self.schedule.name == "sequential"
            or (self.schedule.name == "lookahead" and weight == 1)
        )
        return RoundState(
            self._passes,
            batches,
            criterion,
            self.progress,
            fraction,
            due,
            self.centred,
            weight,
            share=self.schedule.share_at(self.progress),
            beside=self._trains_again() and any(kept.count for kept in due),
            of_rank=self.key is None,
            only_ascents=only_ascents,
        )

    def _trains_again(self) -> bool:
        return self.schedule.name == "recycled" and self._is_active()

    def _is_one_micro_batch(self, batches: list[MicroBatch]) -> bool:
        group = self._passes.group
        return len(batches) == self.rounds == 1 and (group is None or group.size() == 1)

    def _cut(self, images: Tensor, labels: Any) -> list[MicroBatch]:
        """What a call was given, as micro-batches."""
        total = len(images)
        size = min(self.attack.micro_batch or total, total)
        starts = range(0, total, size)
        group, first = self._passes.group, self._micro_batches
        if self.key is not None:
            first = self.key * len(starts)
        elif group is not None:  # no two ranks have the same
            first = first * group.size() + group.rank() * len(starts)
        return [
            MicroBatch(
                first + i,
                images[start : start + size] if size < total else images,
                rows(labels, start, min(start + size, total), total),
            )
            for i, start in enumerate(starts)
        ]

    def _later(self, current: RoundState) -> list[MicroBatch]:
        """Micro-batches of the images that lookahead was shown."""
        if self._ahead.future is None:
            return []
        images, labels = self._ahead.future
        check_images(images)
        check_rows(images, labels)
        device = current.micro_batches[0].images.device
        images = ordinary(images).to(device, non_blocking=True)
        return self._cut(images, map_tensors(lambda t: ordinary(t).to(device), labels))

    def _clean_pass(
        self, current: RoundState, batch: MicroBatch, factor: float, views: Views | None
    ) -> None:
        """A micro-batch at the weights themselves, its own gradient apart."""
        count, ascent = len(batch.images), current.ascents.get(batch.number)
        if ascent is not None and self._alone:
            names = list(ascent.gradients)
            weights = [self._passes.trainable[name] for name in names]
            current.trained += count
            loss = GivenGradients.apply(ascent.loss, list(ascent.gradients.values()), *weights)
            term = Term(loss * factor, ascent.loss, count, ascent.outputs, False, batch.number)
            current.terms.append(term)
            return
        weights_of_pass = self._passes.aliases()
        if self.schedule.takes and self._is_active():
            self._tap(current, weights_of_pass, batch, factor)
        cut = None if views is None else _cut_views(views, batch, current.micro_batches)
        with self._once(current):
            loss = self._passes.substitution.run(
                weights_of_pass,
                lambda: self.adversary.loss(
                    batch.images, batch.labels, current.criterion, views=cut
                ),
            )
        current.has_clean_pass = True
        seen = self.adversary.diagnostics
        current.trained += seen.images
        current.clean_compute += seen.compute
        term = Term(loss * factor, seen.clean_loss, count, seen.outputs, False, batch.number)
        current.terms.append(term)

    def _moved_pass(self, current: RoundState, copy: Copy, factor: float) -> None:
        """A micro-batch at w + e."""
        passes, count = self._passes, len(copy.images)
        weights = passes.moved(copy.direction, self.progress)
        number = None if copy.of is None else copy.of.number
        taps = self.schedule.takes and copy.of is not None and number not in current.tapped
        if taps and copy.of is not None:
            self._tap(current, weights, copy.of, factor)
        # A pass at the weights themselves moves the statistics, once for each image; where there
        # is none, or the branch is one that has no other, this one does.
        had_one = number in {term.number for term in current.terms if not term.moved}
        had_one = had_one or number in current.ascents or self.schedule.name == "lookahead"
        frozen = passes.branch == self.clean_branch and (copy.of is None or had_one)
        where = route(passes.bare, [(passes.branch, count)])
        with self._once(current), where:
            outputs = passes.substitution.run(
                weights, lambda: self.model(copy.images.detach()), frozen=frozen
            )
        loss = loss_of(current.criterion(outputs, copy.labels))
        current.compute += count
        current.trained += count
        plain = map_tensors(lambda tensor: tensor.detach(), outputs)
        current.terms.append(Term(loss * factor, loss.detach(), count, plain, True, number))

    def _once(self, current: RoundState) -> AbstractContextManager[None]:
        """Around each pass: DDP shares rank 0's buffers before the first of a round alone."""
        first, current.began = not current.began, True
        return nullcontext() if first else buffers_as_they_are(self.model)

    def _tap(
        self, current: RoundState, weights: dict[str, Tensor], batch: MicroBatch, factor: float
    ) -> None:
        space = self._passes.space
        vector = space.zeros(self.attack.dtype)
        tap(weights, space.views(vector))
        scale = torch.full((), factor * current.fraction, device=space.device)
        current.tapped[batch.number] = Kept(vector, len(batch.images), scale)

    def _with_zeros(self, current: RoundState, loss: Tensor) -> Tensor:
        """Branches that nothing went through get a gradient of zero, as in `Adversary`."""
        if current.has_clean_pass or not self._routers:
            return loss
        present = {self._passes.branch} if any(term.moved for term in current.terms) else set()
        if any(not term.moved for term in current.terms):
            present.add(self.clean_branch)
        absent = parameters_without_images(self._passes.bare, present)
        return with_zero_gradients(loss, absent)

    def _diagnose(self, current: RoundState) -> None:
        seen = self.adversary.diagnostics if current.has_clean_pass else Diagnostics()
        if not self._alone:  # whose collect() may have cost more
            current.clean_compute = seen.compute
        perturbed = current.mean_loss(moved=True)
        self.diagnostics = replace(
            seen,
            clean_loss=current.mean_loss(moved=False),
            adversarial_loss=perturbed if seen.adversarial_loss is None else seen.adversarial_loss,
            perturbed_loss=perturbed,
            images=current.trained,
            compute=current.compute + current.clean_compute,
            outputs=current.outputs(),
        )


def _cut_views(views: Views, batch: MicroBatch, batches: list[MicroBatch]) -> Views:
    """The part of each view that goes with a micro-batch."""
    place, count = batches.index(batch), len(batches)

    def part(images: Tensor, labels: Any) -> tuple[Tensor, Any]:
        total = len(images)
        start, stop = place * total // count, (place + 1) * total // count
        return images[start:stop], rows(labels, start, stop, total)

    return {name: part(images, labels) for name, (images, labels) in views.items()}

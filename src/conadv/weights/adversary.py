"""The object a user holds: clean passes and passes at moved weights, one loss, what is pending."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from conadv._tree import map_tensors, rows
from conadv.adversary import Adversary, Diagnostics
from conadv.adversary.checks import check_branch, checking
from conadv.adversary.notices import Notices
from conadv.adversary.read_ahead import ReadAhead
from conadv.attack import Attack, Criterion
from conadv.attack.checks import check_images, check_rows
from conadv.attack.pixels import ordinary
from conadv.branches.branches import find_routers
from conadv.schedules import Vanilla
from conadv.weights.attack import WeightAttack
from conadv.weights.checks import check_together
from conadv.weights.passes import Passes
from conadv.weights.pending import Kept, Pending
from conadv.weights.round import RoundState
from conadv.weights.schedule import MicroBatch, WeightSchedule
from conadv.weights.schedules import resolve_schedule
from conadv.weights.state import Continued
from conadv.weights.training import Views, loss_of_round


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
        self.centred = self.schedule.centred if attack.centred is None else attack.centred
        check_together(model, attack, self.schedule, self.centred, adversary, rounds)
        self._passes = Passes(model, attack, self.adversary.clean_branch, seed)
        if attack.branch is not None:
            routers = find_routers(self._passes.bare)
            check_branch(routers, attack.branch, "WeightAttack(branch=...)")
        delay = self.schedule.delay(rounds)
        centres = self.centred and delay > 0
        space, group = self._passes.space, self._passes.group
        self._pending = Pending(space, rounds, delay, centres, attack.dtype, group)
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
        loss = loss_of_round(current, views)
        if loss.requires_grad:
            loss.register_hook(lambda factor: setattr(current, "factor", factor.detach().float()))
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
        if self._keeps():
            current.future = current.future or self._later(current.micro_batches[0].images)
            kept = self.schedule.collect(current)
            for one in current.tapped.values() if self.schedule.takes else kept:
                if current.fraction and one.gradient is not None:
                    self._pending.count(one)
        self._diagnose(current)
        self.images += sum(len(batch.images) for batch in current.micro_batches)
        self._end_round(kept)

    def skip(self) -> None:
        """Take the place of `collect` where the round is void (NaN loss): nothing of it is kept.

        Without a `loss` before it, a round is left out altogether.
        """
        if self._round is not None and self._ahead.ahead and self._keeps():
            self._round.ascend([], later=True)  # other ranks, whose passes may wait for ours
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
        self._pending.end_round(kept, share_mean=self._keeps())
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

    def _keeps(self) -> bool:
        """Whether this step prepares one with passes at moved weights; the same on all ranks."""
        schedule = self.schedule
        return self._is_active() and schedule.in_turn(self._pending.step + schedule.delay(1))

    def _weight(self) -> float | None:
        """Weight of passes at moved weights, where the images' adversary needs the rest."""
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
        schedule, weight = self.schedule, self._weight()
        batches, group = self._cut(images, labels), self._passes.group
        if not self._passes.checked:
            criterion = checking(criterion)
            alone = len(batches) == self.rounds == 1 and (group is None or group.size() == 1)
            if self._pending.centred and alone:
                raise ValueError(
                    f"{len(images)} images are the only micro-batch of a step: centred=True "
                    "leaves nothing of its gradient. Cut it with WeightAttack(micro_batch=...), "
                    "accumulate (rounds=...), or give centred=False."
                )
        active, ascends = self._is_active(), schedule.ascents > 0
        return RoundState(
            self._passes,
            self.adversary,
            self._alone,
            batches,
            criterion,
            self._pending.step,
            self.progress,
            fraction,
            due,
            self._later(images),
            self.centred,
            weight,
            share=schedule.share_at(self.progress),
            beside=schedule.keeps_images and active and any(kept.count for kept in due),
            takes=schedule.takes and self._keeps(),
            ascends=ascends,
            only_ascents=ascends and not schedule.takes_clean_pass(weight, self._alone),
            of_rank=self.key is None,
        )

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

    def _later(self, images: Tensor) -> list[MicroBatch]:
        """Micro-batches of the images that lookahead was shown, where this round's are."""
        if self._ahead.future is None:
            return []
        later, labels = self._ahead.future
        check_images(later)
        check_rows(later, labels)
        later = ordinary(later).to(images.device, non_blocking=True)
        return self._cut(later, map_tensors(lambda t: ordinary(t).to(images.device), labels))

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

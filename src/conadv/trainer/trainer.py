"""What changes during a run, and one step of it: the loop that a library user writes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conadv._numbers import mixed_seed
from conadv.attack import Criterion
from conadv.errors import NonFiniteError
from conadv.trainer.checkpoint.reshard import load_weights, spread_model
from conadv.trainer.distributed.data_parallel import Exchange
from conadv.trainer.input.feed import Feed, Views
from conadv.trainer.step import (
    NO_REQUESTS,
    Precision,
    StepAdversary,
    StepMetrics,
    StepReport,
    StepRequests,
    nonfinite_message,
    read_metrics,
)
from conadv.trainer.update import Update, remember_buffers

MAX_SKIPS_IN_A_ROW = 20
"""Void steps in a row after which a run with ``nonfinite="skip"`` is given up."""


@dataclass(eq=False)
class Trainer:
    """Model, adversary, update and counters of one run; :meth:`train_step` moves them all on."""

    model: nn.Module
    """The bare model; its normalisation already split."""
    adversary: StepAdversary
    """An adversary on that model, or on what it is wrapped in."""
    update: Update
    criterion: Criterion
    """``criterion(logits, labels)``, the mean over the images."""
    feed: Feed
    """The images of each step."""
    exchange: Exchange
    precision: Precision

    def __post_init__(self) -> None:
        self.step = 0
        self.compute = 0.0
        """Cost so far, on all ranks together, in units of one forward and backward of an image."""
        self.skips_in_a_row = 0
        self.requested = NO_REQUESTS
        """What any rank asked for in the last step."""

    @property
    def slots(self) -> range:
        """Which micro-batches of each step are this rank's."""
        return self.exchange.world.slots(self.feed.micro_steps)

    @property
    def finished(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= self.feed.total_steps

    def train_step(self, requests: StepRequests = NO_REQUESTS) -> StepReport:
        """Train on this rank's micro-batches of the next step and update the weights once.

        Args:
            requests: What this rank asks for; :attr:`requested` is then what any rank asked for.

        Raises:
            NonFiniteError: The loss or the gradient is NaN or infinite and the recipe says stop,
                or too many steps in a row were skipped. The weights are those before the step.
        """
        sizes = self.feed.sizes(self.step)
        self.model.train()
        self.adversary.progress = self.step / self.feed.total_steps
        pending = self.adversary.state_dict() if self.update.skip_nonfinite else None
        compute = self.adversary.compute
        learning_rate = self.update.begin(self.step)

        if self.update.sam is not None:
            self._ascend(sizes)
        with self.update.perturbed():
            metrics = self._descend(sizes)
        metrics = replace(
            metrics,
            compute=self.adversary.compute - compute,
            stop=float(requests.stop),
            checkpoint=float(requests.checkpoint),
            hear=float(requests.hear),
        )
        packed = self._exchanged(metrics)

        with self.exchange.world.watchdog.waiting():  # with GPUs it is here that one waits
            norm = self.update.finish_gradients(sum(sizes) / sizes[0] / self.exchange.world.size)
            ranks, gradient_norm = read_metrics(packed, norm)
        total = sum(ranks, StepMetrics())
        self.requested = StepRequests(total.stop > 0, total.checkpoint > 0, total.hear > 0)
        self.compute += total.compute
        report = self._report(total, gradient_norm, learning_rate)
        if report.skipped:
            self._discard(report, ranks, pending)
        else:
            self.update.apply()
            self.skips_in_a_row = 0
        self.step += 1
        return report

    def warm_up_buckets(self, branches: Sequence[str]) -> None:
        """Take one round that leaves no trace, before the first step of several whole copies.

        DistributedDataParallel orders its buckets by the first backward pass it sees. That must be
        one through every branch, or nothing would travel before the end of each later one; and
        the same in a run that is resumed, for the order decides how sums are rounded.

        Args:
            branches: Those to which the adversary gives no images of its own in such a round.
        """
        self.model.train()
        restore_buffers, before = remember_buffers(self.model), self.adversary.state_dict()
        self.exchange.begin()
        images, labels = self.feed.micro_batch(0, 0)
        views = {name: (images, labels) for name in branches}
        self._loss(images, labels, 0.0, views).backward()
        self.adversary.skip()
        self._exchanged(StepMetrics())
        self.update.optimizer.zero_grad(set_to_none=True)
        restore_buffers()
        self.adversary.load_state_dict(before)

    # -- the pieces of a step ------------------------------------------------------------------

    def _ascend(self, sizes: list[int]) -> None:
        """The gradient of the whole step, for SAM to climb along."""
        for _ in self._passes(sizes):
            self.adversary.skip()
        self._exchanged(StepMetrics())

    def _descend(self, sizes: list[int]) -> StepMetrics:
        """The gradient of the update, and the copies of later rounds."""
        metrics = StepMetrics()
        for passed in self._passes(sizes):
            self.adversary.collect()
            metrics += StepMetrics.of_round(*passed, self.adversary.diagnostics)
        return metrics

    def _passes(self, sizes: list[int]) -> Iterator[tuple[Tensor, float, Tensor]]:
        """Forward and backward over this rank's micro-batches; gradients add up in ``.grad``.

        Yields (loss, fraction, labels) of each, for its round to be ended.
        """
        self.exchange.begin()
        mine = range(self.slots.start, min(self.slots.stop, len(sizes)))
        for slot in self.slots:
            if slot in mine:
                yield self._pass(slot, sizes[slot] / sizes[0], slot == mine[-1])
            elif not mine and slot == self.slots[0]:
                # No images in a short step: another rank's with weight 0, so that this one takes
                # part in whatever the ranks exchange, and changes nothing.
                self._pass(len(sizes) - 1, 0.0, last=True)
                self.exchange.undo_statistics()
                self.adversary.skip()
            else:
                self.adversary.idle()

    def _pass(self, slot: int, fraction: float, last: bool) -> tuple[Tensor, float, Tensor]:
        images, labels = self._begin_round(slot)
        self._peek(slot)
        with self.exchange.micro_batch(last):
            loss = self._loss(images, labels, fraction, self.feed.views(self.step, slot))
            with self.update.group(fraction):
                self.update.scaler.scale(loss).backward()
        return loss.detach(), fraction, labels

    def _begin_round(self, slot: int) -> tuple[Tensor, Tensor]:
        """Read a micro-batch, its random numbers a function of its place in the run alone.

        So any number of ranks, and a resumed run, draw the same (dropout, random starts).
        """
        key = self.step * self.feed.micro_steps + slot
        self.adversary.key = key
        torch.manual_seed(mixed_seed(self.adversary.seed, key))
        return self.feed.micro_batch(self.step, slot)

    def _peek(self, slot: int) -> None:
        """Show an adversary that reads ahead the same part of the step that it attacks for."""
        ahead = self.adversary.reads_ahead // len(self.slots)
        later = self.step + ahead
        if ahead and later < self.feed.total_steps and slot < len(self.feed.sizes(later)):
            self.adversary.peek(*self.feed.micro_batch(later, slot))

    def _loss(self, images: Tensor, labels: Tensor, fraction: float, views: Views) -> Tensor:
        with self.precision.autocast():
            return self.adversary.loss(
                images, labels, self.criterion, fraction=fraction, views=views
            )

    def _exchanged(self, metrics: StepMetrics) -> Tensor:
        """Metrics of all ranks, packed; the gradients are means over ranks from here on."""
        self.exchange.send(metrics.pack(self.precision.device))
        return self.exchange.wait()

    def _report(
        self, metrics: StepMetrics, gradient_norm: float, learning_rate: float
    ) -> StepReport:
        done, loss = self.step + 1, metrics.loss.value or 0.0
        # An infinite gradient under a finite loss is how GradScaler finds its scale: it skips
        # the update by itself then.
        finite = math.isfinite(loss) and (
            self.update.scaler.is_enabled() or math.isfinite(gradient_norm)
        )
        return StepReport(
            step=done,
            epoch=round(self.feed.epoch(done), 6),
            loss=loss,
            clean_loss=metrics.clean_loss.value or 0.0,
            adversarial_loss=metrics.adversarial_loss.value,
            accuracy=metrics.accuracy.value or 0.0,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            zero_share=metrics.zero_share.value,
            agreement=metrics.agreement.value,
            images=self.feed.images(done),
            compute=round(self.compute, 3),
            skipped=not finite,
        )

    def _discard(
        self, report: StepReport, ranks: list[StepMetrics], pending: dict[str, Any] | None
    ) -> None:
        """Undo what the micro-batches of this step left behind, or stop."""
        self.update.discard()
        self.skips_in_a_row += 1
        if pending is None or self.skips_in_a_row > MAX_SKIPS_IN_A_ROW:
            bad = [i for i, rank in enumerate(ranks) if not math.isfinite(rank.loss.value or 0.0)]
            ids, where = self.feed.sample_ids(self.step), bad if len(ranks) > 1 else []
            raise NonFiniteError(nonfinite_message(report, ids, self.skips_in_a_row, where))
        self.adversary.load_state_dict(pending)
        for _ in self.slots:
            self.adversary.skip()

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on and that all ranks share.

        Of tensors, numbers, lists and dicts; tensors that lie in parts on the ranks are DTensors.
        What is a rank's own is in :meth:`rank_state_dict`.
        """
        return {
            "step": self.step,
            "compute": self.compute,
            "skips_in_a_row": self.skips_in_a_row,
            "model": dict(self.model.state_dict()),
            **self.update.state_dict(),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """This rank's pending adversarial copies."""
        return {"adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` and :meth:`rank_state_dict` were taken."""
        load_weights(self.model, spread_model(state["model"], self.model.state_dict()))
        self.update.load_state_dict(state)
        self.adversary.load_state_dict(own["adversary"])
        self.step = int(state["step"])
        self.compute = float(state["compute"])
        self.skips_in_a_row = int(state["skips_in_a_row"])

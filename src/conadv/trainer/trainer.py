"""What changes during a run, and one step of it: the loop that a library user writes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conadv._seeds import mixed_seed
from conadv.adversary import Adversary
from conadv.attack import Criterion
from conadv.branches import branch_names
from conadv.errors import NonFiniteError
from conadv.optim import SAM, VarianceReduction
from conadv.trainer.checkpoint.reshard import load_weights, spread_model, spread_optimizer, whole
from conadv.trainer.distributed.data_parallel import Exchange
from conadv.trainer.input.feed import Feed
from conadv.trainer.step import (
    NO_WISHES,
    BufferGuard,
    Numerics,
    Reading,
    StepReport,
    Tally,
    Wishes,
    finish_gradients,
    nonfinite_message,
    read,
)

MAX_SKIPS_IN_A_ROW = 20
"""With ``nonfinite="skip"``: after so many void steps in a row nothing will come of the run."""


class Trainer:
    """Model, optimizer, adversary and counters of one run; :meth:`train_step` moves them all on.

    Args:
        model: The bare model; its normalisation already split.
        adversary: On that model, or on its compiled form.
        optimizer: Each parameter group's ``lr`` is its peak learning rate.
        criterion: ``criterion(logits, labels)``, the mean over the images.
        feed: The images of each step.
        factor: Of a step, on the peak learning rate.
        numerics: Precision, clipping, what to do when the loss is not finite, EMA.
        exchange: The other ranks.
        micro_steps: Micro-batches of a full step, on all ranks together.
        tau: Steps that lookahead reads ahead; 0 for every other schedule.
        sam: Perturbs the weights that a step's gradient is taken at; with a vanilla adversary.
        variance_reduction: Scales gradients by their signal-to-noise ratio over micro-batches.

    Raises:
        DistributedError: The micro-batches of a step cannot be dealt out to the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        adversary: Adversary,
        optimizer: torch.optim.Optimizer,
        criterion: Criterion,
        feed: Feed,
        factor: Callable[[int], float],
        numerics: Numerics,
        exchange: Exchange,
        micro_steps: int,
        tau: int = 0,
        sam: SAM | None = None,
        variance_reduction: VarianceReduction | None = None,
    ) -> None:
        self.model = model
        self.adversary = adversary
        self.optimizer = optimizer
        self.criterion = criterion
        self.feed = feed
        self.factor = factor
        self.numerics = numerics
        self.exchange = exchange
        self.micro_steps = micro_steps
        self.tau = tau
        self.sam = sam
        self.variance_reduction = variance_reduction
        self.slots = exchange.world.slots(micro_steps)
        """Which micro-batches of each step are this rank's."""
        self.agreed = NO_WISHES
        """What is to happen after the last step: what any rank wished."""
        self.step = 0
        self.images = 0
        """Fresh images so far, on all ranks together."""
        self.compute = 0.0
        """Cost so far, on all ranks together, in units of one forward and backward of an image."""
        self.skips_in_a_row = 0
        self.peak_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(
            numerics.device.type, enabled=numerics.autocast_dtype is torch.float16
        )
        self.ema: AveragedModel | None = None
        if numerics.ema_decay is not None:
            average = get_ema_multi_avg_fn(numerics.ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.guard = BufferGuard(model) if numerics.nonfinite == "skip" else None
        self._unperturbed = BufferGuard(model) if sam is not None else None
        self._compute_before = adversary.compute

    @property
    def finished(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= self.feed.total_steps

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model where there is one, otherwise the model itself."""
        return self.model if self.ema is None else self.ema.module

    def train_step(self, wishes: Wishes = NO_WISHES) -> StepReport:
        """Train on this rank's micro-batches of the next step and update the weights once.

        Args:
            wishes: What this rank wants to happen after the step; :attr:`agreed` is what any
                rank wanted.

        Raises:
            NonFiniteError: The loss or the gradient is NaN or infinite and the recipe says stop,
                or too many steps in a row were skipped. The weights are those before the step.
        """
        self.model.train()
        learning_rate = self._set_learning_rate()
        self.adversary.progress = self.step / self.feed.total_steps
        before = self._remember()
        sizes = self.feed.sizes(self.step)
        with self._perturbed(sizes):
            tally = self._passes(sizes)
        compute, self._compute_before = self._compute_since(), self.adversary.compute
        flags = (float(wishes.stop), float(wishes.checkpoint))
        self.exchange.numbers(tally.pack((compute, *flags), self.numerics.device))
        packed = self.exchange.wait()
        self.scaler.unscale_(self.optimizer)
        full = sum(sizes) / sizes[0] / self.exchange.world.size
        clip = self.numerics.clip_grad_norm
        norm = finish_gradients(self.parameters, full, clip, self._reduce_variance)
        with self.exchange.world.watchdog.waiting():  # with GPUs it is here that one waits
            reading = read(packed, norm)
        self.agreed = Wishes(reading.extra[1] > 0, reading.extra[2] > 0)
        self.images += sum(sizes)
        self.compute += reading.extra[0]
        report = self._report(reading, sum(sizes), learning_rate)
        if report.skipped:
            self._void(report, reading, before)
        else:
            self.scaler.step(self.optimizer)
            self.skips_in_a_row = 0
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and not report.skipped:
            self.ema.update_parameters(self.model)
        self.step += 1
        return report

    def settle(self) -> None:
        """Before the first step of several whole copies: one round that leaves no trace.

        DistributedDataParallel orders its buckets by the first backward pass it sees. That must be
        one through every branch, or nothing would travel before the end of each later one; and
        the same in a run that is resumed, for the order decides how sums are rounded.
        """
        self.model.train()
        guard, before = BufferGuard(self.model), self.adversary.state_dict()
        guard.remember()
        self.exchange.begin()
        images, labels = self.feed.micro_batch(0, 0)
        names = branch_names(self.model)
        views = {n: (images, labels) for n in names if n != self.adversary.clean_branch}
        with self.numerics.autocast():
            loss = self.adversary.loss(images, labels, self.criterion, fraction=0.0, views=views)
        loss.backward()
        self.adversary.skip()
        self.exchange.numbers(torch.zeros(1, device=self.numerics.device))
        self.exchange.wait()
        self.optimizer.zero_grad(set_to_none=True)
        guard.restore()
        self.adversary.load_state_dict(before)

    # -- the pieces of a step ------------------------------------------------------------------

    def _passes(self, sizes: list[int], ascent: bool = False) -> Tally:
        """Forward and backward over this rank's micro-batches; gradients add up in ``.grad``."""
        self.exchange.begin()
        mine = range(self.slots.start, min(self.slots.stop, len(sizes)))
        tally = Tally()
        for slot in self.slots:
            if slot in mine:
                self._round(slot, sizes, tally, slot == mine[-1], ascent)
            elif not mine and slot == self.slots[0]:
                self._stand_in(len(sizes) - 1)
            else:
                self.adversary.idle()
        return tally

    @contextmanager
    def _perturbed(self, sizes: list[int]) -> Iterator[None]:
        """With SAM: at weights uphill along a gradient of the whole step; otherwise nothing.

        The running statistics stay those of the passes at the weights themselves.
        """
        if self.sam is None:
            yield
            return
        assert self._unperturbed is not None
        self._passes(sizes, ascent=True)
        self.exchange.numbers(torch.zeros(1, device=self.numerics.device))
        self.exchange.wait()
        self.sam.take_gradient()
        self._unperturbed.remember()
        with self.sam.perturbed():
            yield
        self._unperturbed.restore()

    def _round(self, slot: int, sizes: list[int], tally: Tally, last: bool, ascent: bool) -> None:
        """One micro-batch: loss, backward, and the copies of a later one."""
        images, labels = self._begin(slot)
        self._peek(slot)
        fraction = sizes[slot] / sizes[0]
        with self.exchange.round(last):
            with self.numerics.autocast():
                loss = self.adversary.loss(
                    images,
                    labels,
                    self.criterion,
                    fraction=fraction,
                    views=self.feed.views(self.step, slot),
                )
            with self._group(fraction):
                self.scaler.scale(loss).backward()
        if ascent:
            self.adversary.skip()
            return
        self.adversary.collect()
        tally.add(loss, fraction, labels, self.adversary.diagnostics)

    def _reduce_variance(self) -> None:
        if self.variance_reduction is not None:
            with self.exchange.world.watchdog.waiting():
                self.variance_reduction.scale_gradients()

    def _group(self, fraction: float) -> AbstractContextManager[None]:
        """Around a backward pass whose gradient is compared with those of other micro-batches."""
        reduction = self.variance_reduction
        return nullcontext() if reduction is None else reduction.group(fraction)

    def _stand_in(self, slot: int) -> None:
        """A rank without images in a short step: another's, with weight 0.

        So it takes part in whatever the ranks exchange, and changes nothing.
        """
        images, labels = self._begin(slot)
        with self.exchange.round(last=True):
            with self.numerics.autocast():
                loss = self.adversary.loss(images, labels, self.criterion, fraction=0.0)
            self.scaler.scale(loss).backward()
        self.exchange.undo_statistics()
        self.adversary.skip()

    def _begin(self, slot: int) -> tuple[Tensor, Tensor]:
        """Read a micro-batch, its random numbers a function of its place in the run alone.

        So any number of ranks, and a resumed run, draw the same (dropout, random starts).
        """
        key = self.step * self.micro_steps + slot
        self.adversary.key = key
        torch.manual_seed(mixed_seed(self.adversary.seed, key))
        return self.feed.micro_batch(self.step, slot)

    def _peek(self, slot: int) -> None:
        """Show lookahead the same part of the step that it attacks for."""
        later = self.step + self.tau
        if not self.tau or later >= self.feed.total_steps:
            return
        if slot < len(self.feed.sizes(later)):
            self.adversary.peek(*self.feed.micro_batch(later, slot))

    def _compute_since(self) -> float:
        return self.adversary.compute - self._compute_before

    def _set_learning_rate(self) -> float:
        factor = self.factor(self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        return max(self.peak_lrs) * factor

    def _remember(self) -> dict[str, Any] | None:
        if self.guard is None:
            return None
        self.guard.remember()
        return {"adversary": self.adversary.state_dict(), **self._update_state()}

    def _update_state(self) -> dict[str, Any]:
        """What SAM and variance reduction keep from step to step: references, no copies."""
        sam, reduction = self.sam, self.variance_reduction
        return {
            "sam": None if sam is None else sam.state_dict(),
            "variance_reduction": None if reduction is None else reduction.state_dict(),
        }

    def _load_update_state(self, state: dict[str, Any]) -> None:
        if self.sam is not None:
            self.sam.load_state_dict(state["sam"])
        if self.variance_reduction is not None:
            self.variance_reduction.load_state_dict(state["variance_reduction"])

    def _report(self, read: Reading, images: int, learning_rate: float) -> StepReport:
        # An infinite gradient under a finite loss is how GradScaler finds its scale: it skips
        # the update by itself then.
        finite = read.loss_is_finite and (self.scaler.is_enabled() or read.norm_is_finite)
        return StepReport(
            step=self.step + 1,
            epoch=round(self.feed.epoch(self.step + 1), 6),
            loss=read.loss,
            clean_loss=read.clean_loss,
            adversarial_loss=read.adversarial_loss,
            accuracy=read.correct / images,
            learning_rate=learning_rate,
            gradient_norm=read.gradient_norm,
            zero_share=read.zero_share,
            agreement=read.agreement,
            images=self.images,
            compute=round(self.compute, 3),
            skipped=not finite,
        )

    def _void(self, report: StepReport, reading: Reading, before: dict[str, Any] | None) -> None:
        """Undo what the micro-batches of this step left behind, or stop."""
        self.skips_in_a_row += 1
        if before is None or self.skips_in_a_row > MAX_SKIPS_IN_A_ROW:
            self.optimizer.zero_grad(set_to_none=True)
            ids = self.feed.sample_ids(self.step)
            bad = reading.bad_ranks if self.exchange.world.size > 1 else ()
            raise NonFiniteError(nonfinite_message(report, ids, self.skips_in_a_row, bad))
        assert self.guard is not None
        self.guard.restore()
        self.adversary.load_state_dict(before["adversary"])
        self._load_update_state(before)
        for _ in self.slots:
            self.adversary.skip()
        self._compute_before = self.adversary.compute

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on and that all ranks share.

        Of tensors, numbers, lists and dicts. What is a rank's own is in :meth:`rank_state_dict`.
        With a sharded model all ranks have to call it, and rank 0 gets the whole tensors.
        """
        keep = self.exchange.world.main
        return {
            "step": self.step,
            "images": self.images,
            "compute": self.compute,
            "skips_in_a_row": self.skips_in_a_row,
            "model": whole(self.model.state_dict(), keep=keep),
            "optimizer": whole(self.optimizer.state_dict(), keep=keep),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self._update_state(),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """This rank's pending adversarial copies."""
        return {"adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` and :meth:`rank_state_dict` were taken."""
        load_weights(self.model, spread_model(state["model"], self.model.state_dict()))
        self.optimizer.load_state_dict(spread_optimizer(state["optimizer"], self.optimizer))
        self.adversary.load_state_dict(own["adversary"])
        if self.ema is not None:
            load_weights(self.ema, state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self._load_update_state(state)
        self.step = int(state["step"])
        self.images = int(state["images"])
        self.compute = float(state["compute"])
        self.skips_in_a_row = int(state["skips_in_a_row"])
        self._compute_before = self.adversary.compute

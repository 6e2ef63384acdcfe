"""What changes during a run, and one step of it: the loop that a library user writes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conadv.adversary import Adversary
from conadv.attack import Criterion
from conadv.errors import NonFiniteError
from conadv.training.gradients import BufferGuard, finish_gradients
from conadv.training.rng import rng_state, set_rng_state
from conadv.training.tally import Reading, Tally

MAX_SKIPS_IN_A_ROW = 20
"""With ``nonfinite="skip"``: after so many void steps in a row nothing will come of the run."""


class Feed(Protocol):
    """Where the images come from: a pure function of the step."""

    total_steps: int

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch of a step."""

    def stream(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches (images, labels) from the first one of ``step`` to the end of the run."""

    def sample_ids(self, step: int) -> list[int]:
        """Which samples of the data set a step trains on."""

    def epoch(self, step: int) -> float:
        """How often the training set has been seen before a step."""


@dataclass(frozen=True)
class Numerics:
    """Precision of the passes, and what to do with gradients."""

    device: torch.device
    autocast_dtype: torch.dtype | None = None
    """None computes in float32."""
    clip_grad_norm: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    ema_decay: float | None = None

    def autocast(self) -> torch.autocast:
        """The precision of forward passes. Casts of the weights are kept within one block."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled)


@dataclass(frozen=True)
class StepReport:
    """One line of ``metrics.jsonl``. Losses are means per image; ``accuracy`` is a fraction."""

    step: int
    """Steps done, this one included."""
    epoch: float
    loss: float
    clean_loss: float
    adversarial_loss: float | None
    accuracy: float
    """Of the clean images of this step, as augmented, in training mode."""
    learning_rate: float
    gradient_norm: float
    zero_share: float | None
    """Share of input-gradient values that were exactly zero."""
    images: int
    """Fresh images since the start."""
    compute: float
    """Since the start, in units of one forward and backward of one image."""
    skipped: bool = False


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
    ) -> None:
        self.model = model
        self.adversary = adversary
        self.optimizer = optimizer
        self.criterion = criterion
        self.feed = feed
        self.factor = factor
        self.numerics = numerics
        self.step = 0
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

    @property
    def finished(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= self.feed.total_steps

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model where there is one, otherwise the model itself."""
        return self.model if self.ema is None else self.ema.module

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches from the current step on; lookahead reads ahead on the way.

        A resumed run reads the batches that were read ahead again, for they are a function of the
        step; the adversary's own state holds the copies that were made of them.
        """
        self.model.train()
        return iter(self.adversary.batches(self.feed.stream(self.step)))

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> StepReport:
        """Train on the next step's micro-batches and update the weights once.

        Raises:
            NonFiniteError: The loss or the gradient is NaN or infinite and the recipe says stop,
                or too many steps in a row were skipped. The weights are those before the step.
        """
        learning_rate = self._set_learning_rate()
        self.adversary.progress = self.step / self.feed.total_steps
        before = self._remember()
        sizes = self.feed.sizes(self.step)
        tally = Tally()
        for size in sizes:
            images, labels = next(batches)
            fraction = size / sizes[0]
            with self.numerics.autocast():
                loss = self.adversary.loss(images, labels, self.criterion, fraction=fraction)
            self.scaler.scale(loss).backward()
            self.adversary.collect()
            tally.add(loss, fraction, labels, self.adversary.diagnostics)
        self.scaler.unscale_(self.optimizer)
        norm = finish_gradients(
            self.parameters, sum(sizes) / sizes[0], self.numerics.clip_grad_norm
        )
        report = self._report(tally.read(norm), sum(sizes), learning_rate)
        if report.skipped:
            self._void(report, before, len(sizes))
        else:
            self.scaler.step(self.optimizer)
            self.skips_in_a_row = 0
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and not report.skipped:
            self.ema.update_parameters(self.model)
        self.step += 1
        return report

    # -- the pieces of a step ------------------------------------------------------------------

    def _set_learning_rate(self) -> float:
        factor = self.factor(self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        return max(self.peak_lrs) * factor

    def _remember(self) -> dict[str, Any] | None:
        if self.guard is None:
            return None
        self.guard.remember()
        return self.adversary.state_dict()

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
            images=self.adversary.images,
            compute=round(self.adversary.compute, 3),
            skipped=not finite,
        )

    def _void(self, report: StepReport, before: dict[str, Any] | None, rounds: int) -> None:
        """Undo what the micro-batches of this step left behind, or stop."""
        self.skips_in_a_row += 1
        if before is None or self.skips_in_a_row > MAX_SKIPS_IN_A_ROW:
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(self._nonfinite_message(report))
        assert self.guard is not None
        self.guard.restore()
        images, compute = self.adversary.images, self.adversary.compute
        self.adversary.load_state_dict(before)
        for _ in range(rounds):
            self.adversary.skip()
        # The images were read and the passes were paid for, void or not.
        self.adversary.images, self.adversary.compute = images, compute

    def _nonfinite_message(self, report: StepReport) -> str:
        ids = self.feed.sample_ids(self.step)
        shown = ", ".join(str(i) for i in ids[:32])
        more = f" and {len(ids) - 32} more" if len(ids) > 32 else ""
        again = ""
        if self.skips_in_a_row > 1:
            again = f" {self.skips_in_a_row} steps in a row were void, so skipping does not help."
        return (
            f"step {report.step}: the loss is {report.loss:g} and the gradient's norm "
            f"{report.gradient_norm:g} at learning rate {report.learning_rate:g}.{again} "
            "The weights were not updated. "
            "Lower optimizer.lr, lengthen lr_schedule.warmup_epochs, or set train.nonfinite=skip "
            f"to leave such a step out. Sample ids of the batch: {shown}{more}."
        )

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, of tensors, numbers, lists and dicts."""
        return {
            "step": self.step,
            "skips_in_a_row": self.skips_in_a_row,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; call :meth:`batches` anew afterwards."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adversary.load_state_dict(state["adversary"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.skips_in_a_row = int(state["skips_in_a_row"])
        set_rng_state(state["rng"])

"""Where a micro-batch's direction comes from, and which images are passed at moved weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from conadv.schedules.base import Scheduled, own_labels
from conadv.schedules.beside import Beside
from conadv.weights.pending import Kept
from conadv.weights.schedule import Copy, MicroBatch, Round, WeightSchedule


class Sequential(WeightSchedule):
    """The gradient of the same images right before: SAM, per micro-batch.

    Two gradients in sequence, 6F (2.00x). Centred it needs the gradients of the whole step before
    the first pass at moved weights: only where a step is one round.
    """

    name: ClassVar[str] = "sequential"
    ascents: ClassVar[int] = 1

    def takes_clean_pass(self, weight: float | None, alone: bool) -> bool:
        """The ascent's gradient is that of the clean loss."""
        return not alone

    def copies(self, current: Round) -> list[Copy]:
        """Each chosen micro-batch along the gradient that it has at these weights."""
        chosen = [b for b in current.micro_batches if self.chosen(b, current)]
        if not (current.centred and self.in_turn(current.step)):
            return _copies(chosen, current.ascend(chosen))
        found = dict(zip(map(id, current.micro_batches), current.own_parts(), strict=True))
        return _copies(chosen, [found[id(b)] for b in chosen])


class Recycled(WeightSchedule):
    """The last step's micro-batches again, each along the gradient of its own clean pass.

    That gradient comes out of the training pass, before it is added to the others: no ascent, one
    gradient in sequence, 6F at share 1 (2.00x), or with a fixed budget 3F (1.00x).

    Args:
        share: share of the micro-batches that are kept, in [0, 1].
        weight: of the copies' mean loss, below 1; None: every image counts the same.
        budget: ``"extra"``: beside the step's images. ``"fixed"``: in the place of some of them;
            the loader hands over ``fresh_images(n)``, half of n at share 1.
        every: see `WeightSchedule`.
    """

    name: ClassVar[str] = "recycled"
    centred: ClassVar[bool] = True
    takes: ClassVar[bool] = True
    keeps_images: ClassVar[bool] = True
    default_weight: ClassVar[float | None] = None

    def __init__(
        self,
        share: Scheduled = 1.0,
        weight: Scheduled | None = None,
        budget: Literal["extra", "fixed"] = "extra",
        every: int = 1,
    ) -> None:
        if budget not in ("extra", "fixed"):
            raise ValueError(f"budget={budget!r}: allowed are 'extra' and 'fixed'.")
        if budget == "fixed" and every != 1:
            raise ValueError(
                f"every={every} with budget='fixed': the number of fresh images would change from "
                "step to step. Use budget='extra', or every=1 and a smaller share."
            )
        self.budget = budget
        super().__init__(share, weight, every)

    def weight_at(self, progress: float) -> float | None:
        """A weight below 1, for the clean loss gives the gradient."""
        weight = super().weight_at(progress)
        if weight == 1:
            raise ValueError(
                f"weight=1 at progress {progress:g}: recycled takes the gradient of the clean "
                "loss, which has no weight left then. Give a weight below 1, or use "
                "schedule='sequential'."
            )
        return weight

    def delay(self, rounds: int) -> int:
        """A step."""
        return rounds

    def fresh_share(self) -> float:
        """Fresh images of a step: all of them, or with a fixed budget what the copies leave.

        Raises:
            ValueError: the share changes over training, so that no one number fits.
        """
        if self.budget == "extra":
            return 1.0
        if callable(self.share):
            raise ValueError(
                "share follows a schedule: with budget='fixed' the number of fresh images would "
                "change from step to step. Give share as one number, or use budget='extra'."
            )
        return 1 / (1 + self.share) if self.active(0.0) else 1.0

    def copies(self, current: Round) -> list[Copy]:
        """What the same round of the last step kept."""
        return [
            Copy(kept.images, kept.labels, kept.direction)
            for kept in current.due
            if kept.gradient is not None and kept.images is not None
        ]

    def collect(self, current: Round) -> list[Kept]:
        """The chosen micro-batches with their gradients."""
        pairs = zip(current.micro_batches, current.taken, strict=True)
        return [
            _with_images(b, kept) if self.chosen(b, current) else _unchosen(b) for b, kept in pairs
        ]


class Slot(WeightSchedule):
    """A control: each micro-batch along the last step's gradient of *other* images.

    At weight 1 there is no clean pass: a step's gradient at moved weights gives the next
    direction, 3F (1.00x). Below, the clean pass gives it, 6F (2.00x).
    """

    name: ClassVar[str] = "slot"
    centred: ClassVar[bool] = True
    takes: ClassVar[bool] = True

    def delay(self, rounds: int) -> int:
        """A step."""
        return rounds

    def copies(self, current: Round) -> list[Copy]:
        """Today's micro-batches, along what those in their places had a step ago."""
        return _copies(
            current.micro_batches[: len(current.due)], current.due[: len(current.micro_batches)]
        )

    def collect(self, current: Round) -> list[Kept]:
        """The gradients, by place."""
        pairs = zip(current.micro_batches, current.taken, strict=True)
        return [kept if self.chosen(b, current) else _unchosen(b) for b, kept in pairs]


class Lookahead(WeightSchedule):
    """Each micro-batch along the gradient that it had `tau` steps ago, beside that step.

    The ascent reads the weights of an earlier step, so nothing waits for it: 6F (2.00x), one
    gradient in sequence. Images come from `WeightAdversary.batches` or `peek`; a round whose
    images were not seen before trains at the weights themselves.

    On a CUDA device the ascent runs on a stream of its own beside the training pass, where the
    images to come were shown before `loss`. Not so where it moves running statistics, which at
    weight 1 it does for the training pass: two streams would write to them.

    Args:
        tau: staleness in optimizer steps, 1 or more.
        share: of the micro-batches.
        weight: beside a clean pass; at 1, the default, there is none.
        stream: on a CUDA device, ascend on a second stream.
        every: see `WeightSchedule`.
    """

    name: ClassVar[str] = "lookahead"
    centred: ClassVar[bool] = True
    ascents: ClassVar[int] = 1

    def __init__(
        self,
        tau: int = 1,
        share: Scheduled = 1.0,
        weight: Scheduled | None = None,
        stream: bool = True,
        every: int = 1,
    ) -> None:
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 1:
            raise ValueError(
                f"tau={tau!r}: give a whole number of steps, from 1 (0 is 'sequential')."
            )
        super().__init__(share, weight, every)
        self.tau = tau
        self.stream = stream
        self._beside: Beside[list[Kept]] = Beside(_tensors)

    def delay(self, rounds: int) -> int:
        """`tau` steps."""
        return self.tau * rounds

    def reads_ahead(self, rounds: int) -> int:
        """Rounds read ahead: as far as gradients are old."""
        return self.tau * rounds

    def copies(self, current: Round) -> list[Copy]:
        """Today's micro-batches along their own old gradients."""
        side = current.side_stream() if self.stream and current.future else None
        device = current.micro_batches[0].images.device
        self._beside.begin(current, side, device, partial(self._ascend, current))
        if current.due and len(current.due) != len(current.micro_batches):
            raise RuntimeError(
                f"{len(current.due)} micro-batches were looked at for this round, which has "
                f"{len(current.micro_batches)}: what batches() reads ahead, or peek() is shown, "
                "must be the very batch that its round is given."
            )
        return _copies(current.micro_batches[: len(current.due)], current.due)

    def collect(self, current: Round) -> list[Kept]:
        """Gradients of the later images at these weights."""
        device = current.micro_batches[0].images.device
        return self._beside.take(current, device, partial(self._ascend, current))

    def _ascend(self, current: Round) -> list[Kept]:
        chosen = [b for b in current.future if self.chosen(b, current)]
        found = current.ascend(chosen, later=True)
        made = dict(zip((b.number for b in chosen), found, strict=True))
        return [made.get(b.number, _unchosen(b)) for b in current.future]


class Noise(WeightSchedule):
    """A control: a random direction of the same length; 3F (1.00x) at weight 1."""

    name: ClassVar[str] = "noise"

    def copies(self, current: Round) -> list[Copy]:
        """Chosen micro-batches, each with a direction of its own."""
        chosen = [b for b in current.micro_batches if self.chosen(b, current)]
        return [Copy(b.images, b.labels, partial(current.noise, b), b) for b in chosen]


def _tensors(made: list[Kept]) -> list[Tensor]:
    return [t for kept in made for t in (kept.gradient, kept.scale) if t is not None]


def _copies(batches: list[MicroBatch], gradients: list[Kept]) -> list[Copy]:
    """The micro-batches that have a direction, along it."""
    return [
        Copy(b.images, b.labels, kept.direction, b)
        for b, kept in zip(batches, gradients, strict=True)
        if kept.gradient is not None
    ]


def _unchosen(batch: MicroBatch) -> Kept:
    return Kept(None, len(batch.images))


def _with_images(batch: MicroBatch, kept: Kept) -> Kept:
    """Images and labels beside the gradient: copies, for loaders may fill their tensors anew."""
    count = len(batch.images)
    labels = own_labels(batch.labels, count, count)
    return replace(kept, images=batch.images.detach().clone(), labels=labels)


SCHEDULES: dict[str, type[WeightSchedule]] = {
    schedule.name: schedule
    for schedule in (WeightSchedule, Sequential, Recycled, Lookahead, Slot, Noise)
}


def resolve_schedule(schedule: str | WeightSchedule) -> WeightSchedule:
    """A schedule by its name, or the one given.

    Raises:
        ValueError: no such name.
    """
    if isinstance(schedule, WeightSchedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(SCHEDULES)}.")
    return SCHEDULES[schedule]()

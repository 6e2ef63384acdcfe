"""Where a micro-batch's direction comes from, and which images are passed at moved weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from conadv.schedules.base import Scheduled, own_labels, value_at
from conadv.weights.pending import Kept


@dataclass
class MicroBatch:
    """Images that have a perturbation of their own."""

    number: int
    """In the run."""
    images: Tensor
    labels: Any


@dataclass
class Copy:
    """A pass at moved weights."""

    images: Tensor
    labels: Any
    direction: Tensor
    """A vector of the space, of any length."""
    of: MicroBatch | None = None
    """The round's micro-batch whose clean loss it shares the weight with; None: its own."""


class Round(Protocol):
    """What a schedule sees of one round."""

    progress: float
    micro_batches: list[MicroBatch]
    due: list[Kept]
    """What was kept for this round."""
    future: list[MicroBatch]
    """After the backward: the micro-batches of tau steps later."""

    centred: bool
    """Whether directions are a micro-batch's own part."""

    def ascend(self, batches: list[MicroBatch]) -> list[Kept]:
        """Gradients of these micro-batches at the present weights: a pass of 3F for each."""
        ...

    def own_parts(self) -> list[Kept]:
        """The same of all micro-batches of the round, which is a step, without their mean."""
        ...

    def noise(self, batch: MicroBatch) -> Tensor:
        """A random direction."""
        ...

    @property
    def taken(self) -> list[Kept]:
        """After the backward: each micro-batch's own gradient, where `takes` asked for it."""
        ...


class WeightSchedule:
    """Base of the schedules; also the plainest one of them: weights stay.

    Args:
        share: share of the micro-batches that get a pass at moved weights, in [0, 1], or a
            function of progress. They are spread evenly.
        weight: of such a pass's loss beside the clean one, in [0, 1], or a function of progress;
            None: the schedule's own.
    """

    name: ClassVar[str] = "none"
    centred: ClassVar[bool] = False
    """Whether directions are centred by default."""
    takes: ClassVar[bool] = False
    """Whether the training pass shall also give each micro-batch's own gradient."""
    keeps_images: ClassVar[bool] = False
    """Whether the images wait beside their gradient."""
    ascents: ClassVar[int] = 0
    """Passes that a direction costs."""
    default_weight: ClassVar[float | None] = 1.0

    def __init__(self, share: Scheduled = 1.0, weight: Scheduled | None = None) -> None:
        self.share = share
        self.weight = weight
        for progress in (0.0, 0.5, 1.0):
            self.share_at(progress)
            self.weight_at(progress)

    def delay(self, rounds: int) -> int:
        """How many rounds a gradient waits."""
        return 0

    def reads_ahead(self, rounds: int) -> int:
        """How many rounds ahead the schedule must see images."""
        return 0

    def share_at(self, progress: float) -> float:
        """Share of the micro-batches at this point of training."""
        return value_at(self.share, progress, "share")

    def weight_at(self, progress: float) -> float | None:
        """Weight of the passes at moved weights; None: by the number of images."""
        if self.weight is None:
            return self.default_weight
        return value_at(self.weight, progress, "weight")

    def active(self, progress: float) -> bool:
        """False where share or weight is zero: then nothing is made and nothing costs."""
        return self.share_at(progress) > 0 and self.weight_at(progress) != 0

    def passes(self, progress: float, *, alone: bool = True) -> float:
        """Forward and backward passes of a step for each of its fresh images.

        Args:
            progress: share of training done.
            alone: whether no adversary of images makes the clean part.
        """
        share = self.share_at(progress) if self.active(progress) else 0.0
        weight = self.weight_at(progress)
        clean = 1.0 if self.takes_clean_pass(weight, alone) else 1.0 - share
        return clean + share * (1.0 + self.ascents)

    def takes_clean_pass(self, weight: float | None, alone: bool) -> bool:
        """Whether micro-batches with a pass at moved weights have a clean one of their own too."""
        return not alone or weight != 1

    def chosen(self, batch: MicroBatch, progress: float) -> bool:
        """Whether this micro-batch is one of the share."""
        share, number = self.share_at(progress), batch.number
        return math.floor((number + 1) * share + 1e-6) > math.floor(number * share + 1e-6)

    def fresh_images(self, total: int) -> int:
        """How many fresh images a loader should give for a budget of `total` images per step."""
        return total

    def copies(self, current: Round) -> list[Copy]:
        """Passes at moved weights of this round. Called before the forward; keeps nothing."""
        return []

    def collect(self, current: Round) -> list[Kept]:
        """What is kept for a later round. Called after the backward, before the update."""
        return []


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
        chosen = [b for b in current.micro_batches if self.chosen(b, current.progress)]
        if not current.centred:
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
    ) -> None:
        if budget not in ("extra", "fixed"):
            raise ValueError(f"budget={budget!r}: allowed are 'extra' and 'fixed'.")
        self.budget = budget
        super().__init__(share, weight)

    def weight_at(self, progress: float) -> float | None:
        """Below 1, for the clean loss gives the gradient."""
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
        share = self.share_at(0.0) if self.active(0.0) else 0.0
        return math.floor(total / (1 + share) + 1e-6)

    def copies(self, current: Round) -> list[Copy]:
        """What the same round of the last step kept."""
        return [
            Copy(kept.images, kept.labels, kept.gradient)
            for kept in current.due
            if kept.gradient is not None and kept.images is not None
        ]

    def collect(self, current: Round) -> list[Kept]:
        """The chosen micro-batches with their gradients."""
        pairs = zip(current.micro_batches, current.taken, strict=True)
        return [
            _with_images(b, kept) if self.chosen(b, current.progress) else _unchosen(b)
            for b, kept in pairs
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
        return [kept if self.chosen(b, current.progress) else _unchosen(b) for b, kept in pairs]


class Lookahead(WeightSchedule):
    """Each micro-batch along the gradient that it had `tau` steps ago, beside that step.

    The ascent reads the weights of an earlier step, so nothing waits for it: 6F (2.00x), one
    gradient in sequence. Images come from `WeightAdversary.batches` or `peek`; a round whose
    images were not seen before trains at the weights themselves.

    Args:
        tau: staleness in optimizer steps, 1 or more.
        share: of the micro-batches.
        weight: beside a clean pass; at 1, the default, there is none.
    """

    name: ClassVar[str] = "lookahead"
    centred: ClassVar[bool] = True
    ascents: ClassVar[int] = 1

    def __init__(
        self, tau: int = 1, share: Scheduled = 1.0, weight: Scheduled | None = None
    ) -> None:
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 1:
            raise ValueError(
                f"tau={tau!r}: give a whole number of steps, from 1 (0 is 'sequential')."
            )
        super().__init__(share, weight)
        self.tau = tau

    def delay(self, rounds: int) -> int:
        """`tau` steps."""
        return self.tau * rounds

    def reads_ahead(self, rounds: int) -> int:
        """Rounds read ahead: as far as gradients are old."""
        return self.tau * rounds

    def copies(self, current: Round) -> list[Copy]:
        """Today's micro-batches along their own old gradients."""
        if current.due and len(current.due) != len(current.micro_batches):
            raise RuntimeError(
                f"{len(current.due)} micro-batches were looked at for this round, which has "
                f"{len(current.micro_batches)}: what batches() reads ahead, or peek() is shown, "
                "must be the very batch that its round is given."
            )
        return _copies(current.micro_batches[: len(current.due)], current.due)

    def collect(self, current: Round) -> list[Kept]:
        """Gradients of the later images at these weights."""
        chosen = [b for b in current.future if self.chosen(b, current.progress)]
        made = dict(zip((b.number for b in chosen), current.ascend(chosen), strict=True))
        return [made.get(b.number, _unchosen(b)) for b in current.future]


class Noise(WeightSchedule):
    """A control: a random direction of the same length; 3F (1.00x) at weight 1."""

    name: ClassVar[str] = "noise"

    def copies(self, current: Round) -> list[Copy]:
        """Chosen micro-batches, each with a direction of its own."""
        chosen = [b for b in current.micro_batches if self.chosen(b, current.progress)]
        return [Copy(b.images, b.labels, current.noise(b), b) for b in chosen]


def _copies(batches: list[MicroBatch], gradients: list[Kept]) -> list[Copy]:
    """The micro-batches that have a direction, along it."""
    return [
        Copy(b.images, b.labels, kept.gradient, b)
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

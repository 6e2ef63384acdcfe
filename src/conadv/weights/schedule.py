"""What a schedule of copies of weights is, and what it sees of a round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from conadv.schedules import Work
from conadv.schedules.base import Scheduled, value_at
from conadv.weights.pending import Kept


@dataclass
class MicroBatch:
    """Images that have a perturbation of their own."""

    number: int
    """Its number in the run."""
    images: Tensor
    labels: Any


@dataclass
class Copy:
    """A pass at moved weights."""

    images: Tensor
    labels: Any
    direction: Callable[[], Tensor]
    """Gives a vector of the space, of any length, when the pass is to begin."""
    of: MicroBatch | None = None
    """The round's micro-batch whose clean loss it shares the weight with; None: its own."""


class Round(Protocol):
    """What a schedule sees of one round."""

    step: int
    """How many steps of the optimizer came before."""
    progress: float
    micro_batches: list[MicroBatch]
    due: list[Kept]
    """What was kept for this round."""
    future: list[MicroBatch]
    """The micro-batches of tau steps later, as soon as somebody has shown them."""

    centred: bool
    """Whether directions are a micro-batch's own part."""

    def ascend(self, batches: list[MicroBatch], *, later: bool = False) -> list[Kept]:
        """Gradients of these micro-batches at the present weights: a pass of 3F for each.

        Args:
            batches: the round's own, or those of a later one.
            later: which of the two.
        """
        ...

    def own_parts(self) -> list[Kept]:
        """The same of all micro-batches of the round, which is a step, without their mean."""
        ...

    def noise(self, batch: MicroBatch) -> Tensor:
        """A random direction."""
        ...

    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream for ascents beside the training pass, or None."""
        ...

    @property
    def taken(self) -> list[Kept]:
        """Take each micro-batch's own gradient after the backward, where `takes` asked for it."""
        ...


class WeightSchedule:
    """Base of the schedules; also the plainest one of them: weights stay.

    Args:
        share: share of the micro-batches that get a pass at moved weights, in [0, 1], or a
            function of progress. They are spread evenly.
        weight: of such a pass's loss beside the clean one, in [0, 1], or a function of progress;
            None: the schedule's own.
        every: such passes in every so-manieth step alone, as LookSAM (2203.02714) has it; the
            others are ordinary training.

    Raises:
        ValueError: arguments outside these ranges.
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

    def __init__(
        self, share: Scheduled = 1.0, weight: Scheduled | None = None, every: int = 1
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: give a whole number of steps, from 1.")
        self.share = share
        self.weight = weight
        self.every = every
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
        """Whether passes are made: not where share or weight is zero, and then nothing costs."""
        return self.share_at(progress) > 0 and self.weight_at(progress) != 0

    def work(self, progress: float, of_images: Work | None = None) -> Work:
        """What a step goes over, per image of an ordinary step; the mean of `every` of them.

        Args:
            progress: share of training done.
            of_images: what copies of images beside it go over; None: there are none.
        """
        share = self.share_at(progress) / self.every if self.active(progress) else 0.0
        whole = self.takes_clean_pass(self.weight_at(progress), alone=of_images is None)
        found, part = of_images or Work(), self.fresh_share()
        fresh = part * found.fresh
        return Work(
            fresh=fresh,
            copies=part * found.copies + fresh * (share if whole else 0.0),
            attacked=part * found.attacked,
            input_gradients=part * found.input_gradients,
            views=found.views,
            ascents=fresh * share * self.ascents,
        )

    def takes_clean_pass(self, weight: float | None, alone: bool) -> bool:
        """Whether micro-batches with a pass at moved weights have a clean one of their own too."""
        return not alone or weight != 1

    def in_turn(self, step: int) -> bool:
        """Whether this step of the optimizer, counted from 0, has passes at moved weights."""
        return step % self.every == self.every - 1

    def chosen(self, batch: MicroBatch, current: Round) -> bool:
        """Whether this micro-batch is one of the share, and the step it is for is in turn."""
        if not self.in_turn(current.step + self.delay(1)):
            return False
        share, number = self.share_at(current.progress), batch.number
        return math.floor((number + 1) * share + 1e-6) > math.floor(number * share + 1e-6)

    def fresh_share(self) -> float:
        """Fresh images of a step, as a share of its budget."""
        return 1.0

    def fresh_images(self, total: int) -> int:
        """How many fresh images a loader should give for a budget of `total` images per step."""
        return math.floor(total * self.fresh_share() + 1e-6)

    def kept_bytes(
        self,
        weights: int,
        micro_batches: int,
        *,
        images: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> float:
        """Most bytes that wait on a device for a later step: old gradients, images beside them.

        Args:
            weights: numbers of one gradient, `WeightSpace.size`.
            micro_batches: of a step, on this device.
            images: bytes of one micro-batch's images.
            dtype: of what is kept, `WeightAttack.dtype`.
        """
        share = max(self.share_at(n / 100) for n in range(101))
        steps = math.ceil(self.delay(1) / self.every)  # of which some may wait at a time
        kept = math.ceil(steps * micro_batches * share - 1e-6)
        return kept * (weights * dtype.itemsize + (images if self.keeps_images else 0.0))

    def copies(self, current: Round) -> list[Copy]:
        """Passes at moved weights of this round. Called before the forward; keeps nothing."""
        return []

    def collect(self, current: Round) -> list[Kept]:
        """What is kept for a later round. Called after the backward, before the update."""
        return []

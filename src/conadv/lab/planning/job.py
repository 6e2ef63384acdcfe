"""What is to be trained: sizes, the method, the loader, and how a step is dealt out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from conadv._numbers import largest_divisor, near_divisors
from conadv.errors import PlanError
from conadv.lab.planning.network import Network
from conadv.schedules import VARIANTS, Schedule, Work, find_schedule

SCHEDULES = tuple(VARIANTS)
"""The rows of `conadv bench steps`: recycled-budget is recycled with a fixed budget of images."""


@dataclass(frozen=True)
class Extra:
    """Passes of their own beside those that train: an attack's, or ascents in the weights."""

    operations: float
    """Of all of them, per image of the micro-batch."""
    each: float
    """Of one pass, per image that it goes over."""
    saved: float
    """Bytes that they keep for their backward pass, per image of the micro-batch."""
    passes: int = 1
    """One after the other."""
    ahead: bool = False
    """Whether they are of later batches, beside the training pass."""


@dataclass(frozen=True)
class Method:
    """A schedule, and how much of it."""

    schedule: str = "vanilla"
    """One of `SCHEDULES`, or ``module:Class``."""
    share: float = 1.0
    """Copies per fresh image; with recycled-budget the share of a batch that is copies."""
    attack_steps: int = 1
    """Gradient steps of an attack."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the schedule, such as lookahead's tau in steps."""
    packed: bool = True
    """Whether one sign bit per value is enough of a pending copy."""
    views: int = 0
    """Further views of each fresh image that are trained on."""

    def __post_init__(self) -> None:
        try:
            self.make()
        except (TypeError, ValueError) as error:
            allowed = ", ".join(SCHEDULES)
            raise PlanError(
                f"schedule {self.schedule}: {error}. Allowed: {allowed}, or module:Class."
            ) from error
        if not 0 <= self.share <= 1 or self.fresh <= 0:
            raise PlanError(
                f"share={self.share:g} of {self.schedule}: give a number from 0 to 1 (with a "
                "fixed budget below 1, or no fresh image is left)."
            )

    def make(self, rounds: int = 1) -> Schedule:
        """The schedule, for steps of so many rounds; its own share is the usual one."""
        kind, settings = VARIANTS.get(self.schedule) or (find_schedule(self.schedule), {})
        return kind.for_steps(rounds, **{**settings, **self.settings})

    @property
    def work(self) -> Work:
        """What a step goes over, per image of the micro-batch."""
        return replace(self.make().work(self.share, self.attack_steps), views=self.views)

    @property
    def fresh(self) -> float:
        """Fresh images of a micro-batch, as a share of its size."""
        return self.work.fresh

    @property
    def copies(self) -> float:
        """Copies that are trained on, likewise."""
        return self.work.copies

    @property
    def attacks(self) -> float:
        """Images that are attacked in passes of their own, times the attack's steps."""
        return self.work.attacked

    @property
    def ahead(self) -> bool:
        """Whether it attacks later batches, beside the training pass."""
        return self.make().reads_ahead > 0

    def pending_bytes(self, rounds: int) -> float:
        """Bytes that wait for later rounds, per image of the micro-batch and pixel value."""
        return self.copies * self.make(rounds).pending_bytes(self.packed)

    def train_operations(self, network: Network) -> float:
        """Operations of forward and backward, per image of the micro-batch."""
        to_pixels = self.work.input_gradients * (network.recycle - network.train)
        return self.work.images * network.train + to_pixels

    def extras(self, network: Network) -> list[Extra]:
        """The attack's own passes."""
        if not self.attacks:
            return []
        operations, saved = self.attacks * network.attack, self.copies * network.attack_saved
        return [Extra(operations, network.attack, saved, self.attack_steps, self.ahead)]

    def pending(self, network: Network, dealt: Dealt) -> float:
        """Bytes on a device that wait for later rounds."""
        return self.pending_bytes(dealt.rounds) * dealt.micro_batch * network.values

    def beside_weights(self, network: Network) -> float:
        """Bytes of further weights that a pass needs."""
        return 0.0

    @property
    def passes(self) -> float:
        """Training passes of a micro-batch, one after the other; copies of images go along."""
        return 1

    @property
    def heaviest(self) -> Method:
        """The same, of the step that needs the most memory."""
        return self

    def operations(self, network: Network) -> float:
        """All of them: 3, 8, 8, 6, 3, 6 forward passes, but for the first layer's input."""
        extras = sum(extra.operations for extra in self.extras(network))
        return self.train_operations(network) + extras


@dataclass(frozen=True)
class Loader:
    """Where fresh images come from. The defaults cost nothing: a data set in memory."""

    images_per_core_second: float = math.inf
    """Images that a processor core decodes and augments in a second."""
    cores_per_device: float = 1.0
    bytes_per_image: float = 0.0
    """Encoded."""
    storage: float = math.inf
    """Bytes per second that all devices together read."""

    def seconds(self, images: float, devices: int) -> float:
        """Seconds for so many images on each device."""
        decode = images / (self.images_per_core_second * self.cores_per_device)
        return max(decode, images * devices * self.bytes_per_image / self.storage)


@dataclass(frozen=True)
class Job:
    """A training run, without its method."""

    global_batch: int
    """Images of a step, all devices together (fixed budget: copies included)."""
    micro_batch: int
    """Images of a forward pass, at most."""
    norm_group: int
    """Images of a normalisation group, a divisor of micro_batch."""
    train_images: int
    epochs: float | None = None
    """Passes over the fresh images; None: `steps`."""
    steps: int | None = None
    optimizer_states: int = 1
    """Buffers of the optimizer, each as large as the weights: 1 for momentum, 2 for LAMB."""
    update_passes: int = 5
    """Times that an update reads or writes as many values as there are weights."""
    order_tail: Literal["wrap", "drop", "keep"] = "wrap"
    """What becomes of the images left when an epoch ends inside a step, as in a recipe."""
    averaged: bool = False
    """Whether a moving average of the weights is kept."""
    bucket_bytes: float = 25 * 2**20
    """Size of DistributedDataParallel's buckets."""
    loader: Loader = field(default_factory=Loader)

    def total_steps(self, method: Method) -> int:
        """Weight updates of the run, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "give epochs or steps"
        each = self.train_images / (self.global_batch * method.fresh)
        if self.order_tail != "wrap":
            each = math.floor(each) if self.order_tail == "drop" else math.ceil(each)
        return max(1, round(self.epochs * each))


@dataclass(frozen=True)
class Dealt:
    """A device's part of a step: `rounds` micro-batches of `micro_batch` images."""

    micro_batch: int
    rounds: int


def deal(job: Job, devices: int) -> Dealt:
    """Share a step out without changing its normalisation groups.

    Raises:
        PlanError: the groups cannot be dealt out evenly; the message says which numbers can.
    """
    if devices < 1:
        raise PlanError(f"--devices {devices}: give at least 1.")
    groups = job.global_batch // job.norm_group
    if groups % devices:
        raise PlanError(
            f"a step of {job.global_batch} images in normalisation groups of {job.norm_group} "
            f"cannot be dealt out to {devices} devices: each must get as many whole groups, and "
            f"there are {groups}. Nearest numbers of devices that can: "
            f"{', '.join(map(str, near_divisors(groups, devices)))}; a smaller "
            "batch.norm_group allows more."
        )
    own = groups // devices
    parts = largest_divisor(own, job.micro_batch // job.norm_group)
    return Dealt(parts * job.norm_group, own // parts)

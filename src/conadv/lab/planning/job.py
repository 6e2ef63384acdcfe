"""What is to be trained: sizes, the method, the loader, and how a step is dealt out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from conadv.errors import PlanError
from conadv.lab.planning.network import Network

SCHEDULES = ("vanilla", "sequential", "lookahead", "recycled", "recycled-budget", "noise")
"""As in `conadv bench steps`: recycled-budget is recycled with a fixed budget of images."""


@dataclass(frozen=True)
class Method:
    """A schedule, and how much of it."""

    schedule: str = "vanilla"
    share: float = 1.0
    """Copies per fresh image; with recycled-budget the share of a batch that is copies."""
    attack_steps: int = 1
    """Gradient steps of an attack (sequential, lookahead)."""
    tau: int = 1
    """Steps that lookahead attacks ahead."""
    packed: bool = True
    """Whether one sign bit per value is enough of a pending copy (lookahead)."""
    refine: bool = False
    """Whether a copy's own backward pass takes its gradient too (recycled)."""
    views: int = 0
    """Further views of each fresh image that are trained on."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            allowed = ", ".join(SCHEDULES)
            raise PlanError(f"schedule {self.schedule}: not known. Allowed: {allowed}.")
        if not 0 <= self.share <= 1 or (self.schedule == "recycled-budget" and self.share == 1):
            raise PlanError(
                f"share={self.share:g} of {self.schedule}: give a number from 0 to 1 (with a "
                "fixed budget below 1, or no fresh image is left)."
            )

    @property
    def fresh(self) -> float:
        """Fresh images of a micro-batch, as a share of its size."""
        return 1.0 - self.share if self.schedule == "recycled-budget" else 1.0

    @property
    def copies(self) -> float:
        """Copies that are trained on, likewise."""
        return 0.0 if self.schedule == "vanilla" else self.share

    @property
    def images(self) -> float:
        """Everything that one forward and backward pass goes over, likewise."""
        return self.fresh * (1 + self.views) + self.copies

    @property
    def attacks(self) -> float:
        """Images that are attacked in passes of their own, times the attack's steps."""
        return self.attack_steps * self.share if self.schedule in ("sequential", "lookahead") else 0

    def train_operations(self, network: Network) -> float:
        """Operations of forward and backward, per image of the micro-batch."""
        if self.schedule in ("recycled", "recycled-budget"):
            copy = network.recycle if self.refine else network.train
            views = self.fresh * self.views * network.train
            return self.fresh * network.recycle + self.copies * copy + views
        return self.images * network.train

    def attack_operations(self, network: Network) -> float:
        """Operations of the attack's own passes, likewise."""
        return self.attacks * network.attack

    def operations(self, network: Network) -> float:
        """All of them: 3, 8, 8, 6, 3, 6 forward passes, but for the first layer's input."""
        return self.train_operations(network) + self.attack_operations(network)


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
        """For so many images on each device."""
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
    averaged: bool = False
    """Whether a moving average of the weights is kept."""
    bucket_bytes: float = 25 * 2**20
    """Of DistributedDataParallel's buckets."""
    loader: Loader = field(default_factory=Loader)

    def total_steps(self, method: Method) -> int:
        """Weight updates of the run, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "give epochs or steps"
        return max(1, round(self.epochs * self.train_images / (self.global_batch * method.fresh)))


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
        near = _near_divisors(groups, devices)
        raise PlanError(
            f"a step of {job.global_batch} images in normalisation groups of {job.norm_group} "
            f"cannot be dealt out to {devices} devices: each must get as many whole groups, and "
            f"there are {groups}. Nearest numbers of devices that can: "
            f"{', '.join(map(str, near))}; a smaller batch.norm_group allows more."
        )
    own = groups // devices
    most = job.micro_batch // job.norm_group
    parts = next(size for size in range(min(own, most), 0, -1) if own % size == 0)
    return Dealt(parts * job.norm_group, own // parts)


def _near_divisors(number: int, near: int) -> list[int]:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(math.log(d / near)))[:3])

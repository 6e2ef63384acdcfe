"""Predictions: every schedule, at every number of devices."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conadv.errors import PlanError
from conadv.lab.planning.hardware import Link, read_table
from conadv.lab.planning.job import Dealt, Job, Method, deal
from conadv.lab.planning.memory import memory_of
from conadv.lab.planning.network import Network
from conadv.lab.planning.timing import Rates, Timing, step_timing
from conadv.trainer.probe.memory import Memory

HIDDEN = 1.05
"""An extra cost counts as hidden if the step takes at most so many times as long."""
MOST_DEVICES = 4096


@dataclass(frozen=True)
class StepPlan:
    """What is predicted for one schedule on one number of devices."""

    schedule: str
    devices: int
    dealt: Dealt
    timing: Timing
    memory: Memory
    capacity: float | None
    """Bytes of memory that a device has."""
    steps: int
    """Weight updates of the run."""
    images_per_second: float
    """Fresh images, all devices together."""
    efficiency: float
    """Throughput of a device over that of a device on its own."""

    @property
    def seconds(self) -> float:
        """Time of the run's steps; evaluations and checkpoints not counted."""
        return self.steps * self.timing.step

    @property
    def fits(self) -> bool | None:
        """Whether memory is enough; None: not known how much there is."""
        return None if self.capacity is None else self.memory.total <= self.capacity

    @property
    def bottleneck(self) -> str:
        """What takes most of the step: memory (it does not fit), loader, compute, network, ...

        ``small passes`` is time in which a device waits because a pass has too few images.
        """
        if self.fits is False:
            return "memory"
        timing = self.timing
        if timing.loader >= timing.device:
            return "loader"
        parts = {
            "compute": timing.train + timing.attack + timing.host - timing.idle,
            "small passes": timing.idle,
            "network": timing.exposed,
            "optimizer": timing.update,
        }
        return max(parts, key=parts.__getitem__)


def plan_step(
    network: Network,
    job: Job,
    method: Method,
    rates: Rates,
    link: Link,
    devices: int,
    capacity: float | None = None,
    saved_per_image: float | None = None,
) -> StepPlan:
    """Predict one schedule on one number of devices.

    Args:
        network: counted.
        job: sizes.
        method: the schedule.
        rates: of one device.
        link: between devices.
        devices: how many.
        capacity: bytes of memory of one; None: not known.
        saved_per_image: measured bytes of activations per image; None: those counted.

    Raises:
        PlanError: the batch cannot be dealt out to so many.
    """
    dealt, single = deal(job, devices), deal(job, 1)
    timing = step_timing(network, job, method, dealt, rates, link, devices)
    alone = step_timing(network, job, method, single, rates, link, 1)
    beside = method.ahead and rates.streams
    return StepPlan(
        schedule=method.schedule,
        devices=devices,
        dealt=dealt,
        timing=timing,
        memory=memory_of(network, job, method, dealt, saved_per_image, beside),
        capacity=capacity,
        steps=job.total_steps(method),
        images_per_second=job.global_batch * method.fresh / timing.step,
        efficiency=alone.step / (devices * timing.step),
    )


@dataclass(frozen=True)
class Comparison:
    """One schedule beside vanilla on the same devices."""

    plan: StepPlan
    over_vanilla: float
    """Step time as a multiple of vanilla's."""
    hidden: bool | None
    """Whether what it does beyond vanilla costs next to no time; None: vanilla itself."""

    def as_dict(self) -> dict[str, Any]:
        """One row of the tables, as plain values: seconds, bytes, fractions."""
        plan, timing = self.plan, self.plan.timing
        return {
            "schedule": plan.schedule,
            "devices": plan.devices,
            "micro_batch": plan.dealt.micro_batch,
            "rounds": plan.dealt.rounds,
            "step_seconds": timing.step,
            "parts": {**asdict(timing)},
            "over_vanilla": self.over_vanilla,
            "hidden": self.hidden,
            "efficiency": plan.efficiency,
            "images_per_second": plan.images_per_second,
            "steps": plan.steps,
            "train_seconds": plan.seconds,
            "memory": {**asdict(plan.memory), "total": plan.memory.total},
            "fits": plan.fits,
            "bottleneck": plan.bottleneck,
        }


def compare(
    network: Network,
    job: Job,
    methods: Sequence[Method],
    rates: Rates,
    link: Link,
    devices: int,
    capacity: float | None = None,
    saved_per_image: float | None = None,
) -> list[Comparison]:
    """Schedules beside vanilla with as many views; arguments and errors as in `plan_step`."""
    hardware = (rates, link, devices, capacity, saved_per_image)
    found = []
    for method in methods:
        base = plan_step(network, job, Method(views=method.views), *hardware).timing.step
        plan = plan_step(network, job, method, *hardware)
        ratio = plan.timing.step / base
        hidden = None if not (method.copies or method.attacks) else ratio <= HIDDEN
        found.append(Comparison(plan, ratio, hidden))
    return found


def device_counts(job: Job, also: int = 1, most: int = MOST_DEVICES) -> tuple[list[int], list[int]]:
    """Powers of two up to `most`, and `also`: those that can carry the batch, and the others."""
    wanted = sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {also})
    carry, refused = [], []
    for devices in wanted:
        try:
            deal(job, devices)
        except PlanError:
            refused.append(devices)
        else:
            carry.append(devices)
    return carry, refused


def published() -> list[dict[str, Any]]:
    """Runs that others published: what, batch, devices, device, minutes (or None), source."""
    rows: list[dict[str, Any]] = read_table("published")
    return rows

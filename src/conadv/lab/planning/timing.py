"""The time of one step: passes, and what of the all-reduce they do not cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conadv.errors import PlanError
from conadv.lab.planning.hardware import DeviceType, Link, all_reduce_seconds
from conadv.lab.planning.job import Dealt, Job, Method
from conadv.lab.planning.network import Network


@dataclass(frozen=True)
class Rates:
    """How fast one device computes."""

    operations: float
    """Images per second, with a large batch."""
    half_batch: float = 0.0
    """Images of a pass at which half of that is reached: a pass costs n + half_batch images."""
    bandwidth: float = math.inf
    """Bytes per second of its memory, for the optimizer's update."""
    streams: bool = False
    """Whether an attack runs on a second stream beside training."""

    @classmethod
    def of(
        cls,
        device: DeviceType,
        network: Network,
        micro_batch: int,
        images_per_second: float | None = None,
        utilisation: float | None = None,
        half_batch: float | None = None,
    ) -> Rates:
        """Derive the rates from a device type, or from a measured throughput.

        Args:
            device: the type.
            network: what is computed.
            micro_batch: images of a pass at which the throughput was measured.
            images_per_second: of ordinary training on one such device; None: the type's peak.
            utilisation: in place of the type's.
            half_batch: in place of the type's.

        Raises:
            PlanError: neither a throughput nor a peak is known.
        """
        half = device.half_batch if half_batch is None else half_batch
        bandwidth = math.inf if device.bandwidth is None else device.bandwidth
        used = device.utilisation if utilisation is None else utilisation
        if images_per_second is not None:
            rate = images_per_second * network.train * (1 + half / micro_batch)
            # The measured throughput has the update in it already.
            return cls(rate, half, math.inf, device.streams)
        if device.peak is None or used is None:
            raise PlanError(
                f"--device-type {device.name} has no peak rate: give --images-per-second, of "
                "ordinary training on one such device, or another device type."
            )
        return cls(device.peak * used, half, bandwidth, device.streams)

    def work(self, operations: float) -> float:
        """Seconds of so many operations at the full rate."""
        return operations / self.operations

    def start(self, operations_per_image: float) -> float:
        """Seconds that a pass takes beyond its work."""
        return self.half_batch * operations_per_image / self.operations


@dataclass(frozen=True)
class Timing:
    """Seconds of a step and of its parts; the step is the larger of loader and the rest."""

    train: float
    """Forward and backward passes."""
    attack: float
    """What the attack adds to them."""
    idle: float
    """Part of both that small passes leave unused."""
    host: float
    """Copying and adding what travels, where the device's own processor does that."""
    update: float
    """The optimizer."""
    network: float
    """The all-reduce with nothing beside it."""
    exposed: float
    """Part of it that nothing covers."""
    loader: float
    """Reading and decoding the images of a step."""

    @property
    def device(self) -> float:
        """The step if images were always there."""
        return self.train + self.attack + self.host + self.update + self.exposed

    @property
    def step(self) -> float:
        """The step."""
        return max(self.device, self.loader)


def step_timing(
    network: Network, job: Job, method: Method, dealt: Dealt, rates: Rates, link: Link, devices: int
) -> Timing:
    """Time of a step on `devices` devices, each with its part of it.

    Passes of all micro-batches but the last run with nothing on the link. During the last backward
    pass buckets of gradients enter the link as they fill, one behind the other; lookahead's last
    attack comes after that pass, and the optimizer waits for the last bucket.
    """
    size, each = dealt.micro_batch, method.train_operations(network)
    train_work = rates.work(each * size)
    # Fresh images and copies of images go through the network as one batch.
    train = train_work + method.passes * rates.start(each / method.work.images)
    every = method.extras(network)
    ahead = [extra for extra in every if extra.ahead]
    before = [extra for extra in every if not extra.ahead]
    extra_work = sum(rates.work(extra.operations * size) for extra in every)
    added, after = (
        sum(rates.work(e.operations * size) + e.passes * rates.start(e.each) for e in extras)
        for extras in (before, ahead)
    )
    if ahead and rates.streams:
        # Beside the training pass: what one leaves idle the other uses.
        work = sum(rates.work(extra.operations * size) for extra in ahead)
        after = max(train, train_work + work, after) - train
    added += after
    forward = network.forward * method.work.images / each
    backward = train * (1 - forward)
    buckets = network.buckets(job.bucket_bytes)
    alone, left = _exposed(buckets, link, devices, backward, after)
    gradient_bytes = network.gradient_bytes
    reads = 2 if method.ahead else 1  # what is attacked ahead is read again in its own round
    fresh = size * dealt.rounds * method.fresh * (1 + method.views)
    return Timing(
        train=dealt.rounds * train,
        attack=dealt.rounds * added,
        idle=dealt.rounds * max(0.0, train + added - train_work - extra_work),
        host=gradient_bytes / link.host if devices > 1 else 0.0,
        update=4 * network.parameters * job.update_passes / rates.bandwidth,
        network=alone,
        exposed=left,
        loader=job.loader.seconds(reads * fresh, devices),
    )


def _exposed(
    buckets: Sequence[tuple[float, int]], link: Link, devices: int, backward: float, after: float
) -> tuple[float, float]:
    """Seconds of all buckets on the link, and what remains of them at the end of computing."""
    alone, free = 0.0, 0.0
    for share, size in buckets:
        seconds = all_reduce_seconds(link, devices, size)
        free = max(free, share * backward) + seconds
        alone += seconds
    return alone, max(0.0, free - backward - after)

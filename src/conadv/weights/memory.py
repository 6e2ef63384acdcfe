"""What copies of weights keep from one step to a later one."""

from __future__ import annotations

import math

import torch

from conadv.weights.schedules import WeightSchedule


def kept_bytes(
    schedule: WeightSchedule,
    weights: int,
    micro_batches: int,
    *,
    images: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Most bytes that wait on a device for a later step: old gradients, images to train on again.

    Args:
        schedule: says how long a gradient waits, and of which share of the micro-batches.
        weights: numbers of one gradient, `WeightSpace.size`.
        micro_batches: of a step, on this device.
        images: bytes of one micro-batch's images.
        dtype: of what is kept, `WeightAttack.dtype`.
    """
    share = max(schedule.share_at(n / 100) for n in range(101))
    kept = math.ceil(schedule.delay(micro_batches) * share - 1e-6)
    return kept * (weights * dtype.itemsize + (images if schedule.keeps_images else 0.0))

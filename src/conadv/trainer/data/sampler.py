"""Which images a step trains on: a pure function of (seed, step), whatever the devices.

The order is a concatenation of epochs, each a permutation of its own; step s with `count` images
takes positions [s * count, (s + 1) * count) of it. Ranks and micro-batches cut what a step takes,
they never choose: any number of devices sees the same global batches. A step's cost does not grow
with the data set: beyond `WHOLE` images no table of the order is made.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.keyed_order import keyed_order

Tail = Literal["wrap", "drop", "keep"]
WHOLE = 2**25
"""Up to so many images an epoch's order is a table; of more it is computed place by place."""
TAILS: tuple[Tail, ...] = ("wrap", "drop", "keep")


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order of epoch `epoch`, int64, shape (size,).

    A sort of 64-bit Philox draws: numpy guarantees the stream of a bit generator across versions
    and platforms, which it does not for shuffling methods, nor torch for randperm. The tensor is
    kept and shared: do not write to it.
    """
    generator = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
    keys = generator.random_raw(size)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


def steps_per_epoch(count: int, size: int, tail: Tail) -> float:
    """Steps in one pass over `size` images at `count` per step; a fraction for ``"wrap"``."""
    check_count(count, size)
    if tail == "wrap":
        return size / count
    return size // count if tail == "drop" else -(-size // count)


def check_count(count: int, size: int) -> None:
    """Raise DataError unless a step's images fit into the data set."""
    if not 1 <= count <= size:
        raise DataError(
            f"A step takes {count} images, but there are {size} to train on: give 1 to {size} "
            "(batch.global_batch), or more images."
        )


def sample_indices(seed: int, step: int, count: int, size: int, tail: Tail = "wrap") -> Tensor:
    """Indices of the images of a step, int64.

    Args:
        seed: of the run.
        step: from 0.
        count: images per step.
        size: images to choose from.
        tail: what happens at the end of an epoch that `count` does not divide. ``"wrap"``: the
            step goes on into the next epoch, every step has `count` images and every image comes
            once an epoch. ``"drop"``: the rest is left out, another one each epoch. ``"keep"``:
            the last step of an epoch is smaller.

    Raises:
        DataError: a step needs more images than there are, or none.
        ValueError: an unknown `tail`, or a negative step.
    """
    check_count(count, size)
    if tail not in TAILS:
        raise ValueError(f"tail={tail!r}: allowed are {', '.join(TAILS)}.")
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0.")
    if tail != "wrap":
        epoch, place = divmod(step, int(steps_per_epoch(count, size, tail)))
        return order_of(seed, epoch, size, place * count, min(size, (place + 1) * count))
    first, last = step * count, (step + 1) * count
    parts = []
    while first < last:
        epoch, offset = divmod(first, size)
        stop = min(size, offset + last - first)
        parts.append(order_of(seed, epoch, size, offset, stop))
        first += stop - offset
    return torch.cat(parts)


def order_of(seed: int, epoch: int, size: int, first: int, last: int) -> Tensor:
    """Places [first, last) of the order of an epoch, a tensor of its own."""
    if size > WHOLE:
        return torch.from_numpy(keyed_order(seed, epoch, size, first, last))
    return permutation(seed, epoch, size)[first:last].clone()

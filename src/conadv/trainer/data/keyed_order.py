"""A permutation that is computed place by place: no table of a billion images.

A Feistel network of balanced halves permutes 2^(2b) numbers, whatever its round function (Luby and
Rackoff, 1988, "How to construct pseudorandom permutations from pseudorandom functions"). A smaller
range comes by cycle-walking: a number outside is sent through again until it is inside (Black and
Rogaway, 2002, "Ciphers with arbitrary finite domains"), less than four times on average.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
Numbers = NDArray[np.uint64]


def keyed_order(seed: int, epoch: int, size: int, first: int, last: int) -> NDArray[np.int64]:
    """Places [first, last) of the order of an epoch, in time and memory of their number.

    Args:
        seed: of the run.
        epoch: from 0.
        size: images to choose from, up to 2^62.
        first: a place, from 0.
        last: the place behind the last one, at most `size`.

    Returns:
        Indices in [0, size), int64, shape (last - first,).
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    philox = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
    keys = philox.random_raw(2 * ROUNDS).astype(np.uint64)
    found = np.arange(first, last, dtype=np.uint64)
    outside = np.arange(last - first)
    while len(outside):
        found[outside] = _feistel(found[outside], half, keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(numbers: Numbers, half: int, keys: Numbers) -> Numbers:
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = numbers >> bits, numbers & mask
    for key, other in keys.reshape(ROUNDS, 2):
        left, right = right, left ^ (_mixed(right ^ key) + other & mask)
    return left << bits | right


def _mixed(x: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all."""
    with np.errstate(over="ignore"):
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)

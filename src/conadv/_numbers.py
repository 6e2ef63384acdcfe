"""Whole numbers: what divides them, and one seed out of several."""

import math

_MASK = 2**64 - 1


def mixed_seed(*numbers: int) -> int:
    """63 bits for `torch.Generator.manual_seed`; close numbers give unrelated streams.

    A splitmix64 step per number (Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1


def divisors(number: int) -> list[int]:
    """All of them, in rising order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor that is not above a limit of at least 1."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def near_divisors(number: int, near: int) -> list[int]:
    """The three divisors whose ratio to another number is closest to 1, in rising order."""
    return sorted(sorted(divisors(number), key=lambda d: abs(math.log(d / near)))[:3])

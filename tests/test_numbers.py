"""What divides a number."""

from conadv._numbers import divisors, largest_divisor, near_divisors


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert [largest_divisor(12, limit) for limit in (1, 5, 12, 100)] == [1, 4, 12, 12]
    assert near_divisors(32, 64) == [8, 16, 32]
    assert near_divisors(32, 3) == [2, 4, 8]

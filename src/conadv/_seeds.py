"""One seed out of several numbers."""

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

"""What messages are made of: times as people write them, and names that somebody may have meant."""

import difflib
from collections.abc import Iterable


def duration(seconds: float) -> str:
    """A time in three digits, from microseconds to days: ``43 s``, ``12.5 min``, ``6.2 h``."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{seconds / size:.3g} {unit}"
    return "0 s" if seconds == 0 else f"{seconds * 1e6:.3g} us"


def nearest(word: str, words: Iterable[str], count: int = 3, alike: float = 0.6) -> list[str]:
    """The words most like `word`, best first, whatever their case; none if nothing is like it.

    Args:
        word: What was given.
        words: What there is.
        count: How many to name at most.
        alike: From which share of common letters on, in [0, 1].
    """
    lower = {w.lower(): w for w in words}
    return [lower[w] for w in difflib.get_close_matches(word.lower(), lower, count, alike)]


def did_you_mean(likely: Iterable[str]) -> str:
    """`` Did you mean a or b?``, to be put behind a sentence; empty for none."""
    names = " or ".join(likely)
    return f" Did you mean {names}?" if names else ""

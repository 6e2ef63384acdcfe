"""Damaged images: what takes their place, how many there were, when there are too many."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from conadv.errors import DataError

NAMED = 100
"""Damaged images that are kept by name."""


def substitutes(count: int, corrupt: Collection[int]) -> dict[int, int]:
    """For each damaged place of a request the next good one, going round at the end.

    Args:
        count: images in the request.
        corrupt: places that are damaged, fewer than all.
    """
    bad = set(corrupt)
    found = {}
    for place in sorted(bad):
        other = place
        while other in bad:
            other = (other + 1) % count
        found[place] = other
    return found


class Tally:
    """Counts images read and damaged ones, and says when it is enough.

    Args:
        max_share: damaged images among those read so far; more raise.
        at_least: but never at fewer than so many.

    Raises:
        ValueError: a share outside [0, 1], or `at_least` below 1.
    """

    def __init__(self, max_share: float = 0.001, at_least: int = 10) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_corrupt={max_share}: give a share, 0 to 1.")
        if at_least < 1:
            raise ValueError(f"at_least={at_least}: give 1 or more.")
        self.max_share = max_share
        self.at_least = at_least
        self.read = 0
        self.corrupt = 0
        self.named: dict[str, str] = {}
        """Where damaged images lie, and what is wrong with them; at most `NAMED`."""

    def add(self, read: int, corrupt: Sequence[tuple[str, str]]) -> None:
        """Count images of a request.

        Args:
            read: all of them.
            corrupt: for each damaged one where it lies, and why it cannot be decoded.

        Raises:
            DataError: too many are damaged.
        """
        self.read += read
        self.corrupt += len(corrupt)
        for where, why in corrupt:
            if len(self.named) < NAMED:
                self.named.setdefault(where, why)
        if corrupt and self.corrupt >= self.at_least:
            if self.corrupt > self.max_share * self.read:
                raise DataError(self._too_many())

    def _too_many(self) -> str:
        first = [f"{where} ({why})" for where, why in [*self.named.items()][:3]]
        return (
            f"{self.corrupt:,} of {self.read:,} images read cannot be decoded, more than "
            f"{self.max_share:.2%}: {'; '.join(first)}{' ...' if len(self.named) > 3 else '.'} "
            "Fetch the data again, or raise max_corrupt."
        )

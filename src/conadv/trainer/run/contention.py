"""Whether other programs keep a training from its cores."""

import time
from pathlib import Path

SCHEDSTAT = Path("/proc/self/schedstat")
"""Linux: nanoseconds for which the main thread has run, and has waited for a core."""
WINDOW = 10.0
"""Seconds over which waiting is measured."""
MUCH = 0.25
"""Share of waiting that is said: alone it was .07, of two trainings side by side .53."""


class Contention:
    """Tells once that the threads of a training wait for cores that others use.

    Every operation ends when its last thread does, and of two trainings with a thread on each of
    the same cores one always waits (``benchmarks/side_by_side.py``). Threads that sleep instead of
    spinning are slower still, and the number of threads is part of what makes results equal, so
    this changes neither.

    Args:
        threads: those of an operation; with one, nothing can be gained and nothing is said.
    """

    def __init__(self, threads: int) -> None:
        self._useful = threads > 1
        self._since = (time.monotonic(), _waited())

    def notice(self) -> str | None:
        """What there is to say after a step; None if nothing, or if it was said before."""
        started, waited = self._since
        now = time.monotonic()
        if not self._useful or waited is None or now - started < WINDOW:
            return None
        total = _waited()
        self._since = (now, total)
        if total is None or (share := (total - waited) / (now - started)) < MUCH:
            return None
        self._useful = False  # once is enough
        return (
            f"other programs use the same cores: this one waited for a core {share:.0%} of the "
            f"last {now - started:.0f} s. Trainings side by side are several times faster with "
            "fewer threads each: hardware.threads=1 for two of them on two cores."
        )


def _waited() -> float | None:
    """Seconds for which the main thread was ready to run and had no core; None if unknown."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None

"""Runs of one setting, seeds together, and each setting against ordinary training."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from conadv.report.palette import MethodKey
from conadv.report.runs import Run


@dataclass(frozen=True)
class Cell:
    """All runs of one method at one batch size on one data set and network.

    Attributes:
        dataset: Name of the data set.
        model: Name of the network.
        key: Which method.
        batch: Images per weight update, or None where unknown.
        runs: Its runs, at least one.
    """

    dataset: str
    model: str
    key: MethodKey
    batch: int | None
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that went to their end."""
        return tuple(run for run in self.runs if run.status == "finished")

    def values(self, name: str) -> list[float]:
        """A number of ``result.json`` from each finished run that has it."""
        return [value for run in self.finished if (value := run.number(name)) is not None]

    def mean(self, name: str) -> float | None:
        """Mean over the finished runs, or None."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation over the finished runs; None with fewer than two."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


def method_key(run: Run) -> MethodKey:
    """What decides the colour and the row of a run."""
    return MethodKey(run.method, run.schedule, str(run.setting("method.budget") or "extra"))


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Group runs, in the order in which their settings first appear."""
    groups: dict[tuple[str, str, MethodKey, int | None], list[Run]] = {}
    for run in runs:
        place = (run.dataset, run.model, method_key(run), run.batch)
        groups.setdefault(place, []).append(run)
    return [Cell(*place, tuple(members)) for place, members in groups.items()]


def baseline(cell: Cell, among: Iterable[Cell]) -> Cell | None:
    """Ordinary training with the same data, network and batch size, if it is there.

    Of several (another optimizer, more steps) the first is taken.
    """
    for other in among:
        same = (other.dataset, other.model, other.batch) == (cell.dataset, cell.model, cell.batch)
        if same and other.key.schedule == "vanilla":
            return other
    return None


def relative(cell: Cell, among: Iterable[Cell], name: str) -> float | None:
    """A cost of the cell as a multiple of its :func:`baseline`; None without one."""
    reference = baseline(cell, among)
    if reference is None:
        return None
    above, below = cell.mean(name), reference.mean(name)
    return above / below if above is not None and below else None

"""Runs of one setting, seeds together, and each setting against ordinary training."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.report.charts.palette import MethodKey
from conadv.lab.report.runs import Run

STEP_TIME = "step_seconds_median"
EXPLAINED = {"cpu": 1.4, "other": 2.0}
"""Step time over counted operations, both as multiples, up to which the time is believed."""


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

    @property
    def name(self) -> str:
        """Method and batch in words."""
        return self.key.method if self.batch is None else f"{self.key.method}, batch {self.batch:,}"

    @property
    def ordinary(self) -> bool:
        """Whether this is training without copies, second views or perturbed weights."""
        return (
            not self.key.family.copies
            and (self.setting("method.sam") or "none") == "none"
            and (self.setting("method.view") or "none") == "none"
            and (self.setting("weights.schedule") or "none") == "none"
            and not self.setting("optimizer.variance_reduction")
        )

    @property
    def adversarial(self) -> bool:
        """Whether it trains on adversarial copies; random noise does not count."""
        return self.key.family.attacks

    @property
    def tests_unused(self) -> bool:
        """Whether unused training images are among its test images (``data.test_unused``)."""
        return bool(self.setting("data.test_unused"))

    @property
    def length(self) -> float:
        """Steps as a multiple of what the recipe's epochs ask for (``train.steps_factor``)."""
        factor = self.setting("train.steps_factor")
        return float(factor) if isinstance(factor, int | float) else 1.0

    @property
    def merit(self) -> float | None:
        """Accuracy on images held out: of these runs, or of the trial that chose their settings."""
        own = self.mean("val_accuracy")
        return own if own is not None else self.runs[0].tuned_accuracy

    def setting(self, dotted: str) -> Any:
        """A value of the first run's recipe."""
        return self.runs[0].setting(dotted)

    def values(self, name: str) -> list[float]:
        """A number of ``result.json`` from each finished run that has it."""
        return [value for run in self.finished if (value := run.number(name)) is not None]

    def by_seed(self, name: str) -> dict[int, float]:
        """The same by the seed of the run; of runs of one seed the last."""
        return {
            int(seed): value
            for run in self.finished
            if (value := run.number(name)) is not None
            and isinstance(seed := run.result.get("seed"), int)
        }

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

    Of several the first of usual length is taken (not one of twice the steps, say), else the first.
    """
    found = [
        other
        for other in among
        if (other.dataset, other.model, other.batch) == (cell.dataset, cell.model, cell.batch)
        and other.ordinary
    ]
    return next((other for other in found if other.length == 1), found[0] if found else None)


def relative(cell: Cell, among: Sequence[Cell], name: str) -> float | None:
    """A cost of the cell as a multiple of its :func:`baseline`; None without one.

    None too for a step time that is not to be believed (:func:`disturbed`).
    """
    if name == STEP_TIME and disturbed(cell, among):
        return None
    return _multiple(cell, baseline(cell, among), name)


def disturbed(cell: Cell, among: Sequence[Cell]) -> bool:
    """Whether its step time, beside ordinary training's, was measured on cores with other work.

    That is where a step took over :data:`EXPLAINED` times what its counted operations explain; or
    less than they explain by as much, on a CPU, which does nothing for nothing. A GPU may: there a
    step has to take under half of ordinary training's own time while doing at least as much.
    """
    reference = baseline(cell, among)
    time, compute = (_multiple(cell, reference, name) for name in (STEP_TIME, "compute"))
    steps = _multiple(cell, reference, "steps") or 1.0
    if time is None or compute is None:
        return False
    on_cpu = all(run.on_cpu for run in cell.finished)
    most, per_step = EXPLAINED["cpu" if on_cpu else "other"], compute / steps
    least = per_step if on_cpu else min(1.0, per_step)
    return time > most * per_step or time < least / most


def _multiple(cell: Cell, reference: Cell | None, name: str) -> float | None:
    if reference is None:
        return None
    above, below = cell.mean(name), reference.mean(name)
    return above / below if above is not None and below else None

"""What a reader must know before a figure is believed, in two or three words each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from conadv.lab.report.study.cells import Cell


def marks(cell: Cell, among: Sequence[Cell]) -> tuple[str, ...]:
    """A tuned value at the edge of its grid, unequal tuning, runs that were lost.

    Unfinished training stands beside the training accuracy.

    Args:
        cell: The setting.
        among: All at its batch, itself included: what tuning is usual there.
    """
    tuning = cell.runs[0].tuning
    found = [f"{name.rpartition('.')[2]} at the edge" for name in _edges(tuning)]
    usual = Counter(_trials(other) for other in among).most_common(1)[0][0]
    if _trials(cell) != usual:
        found.append(f"{_trials(cell)} trials, others {usual}")
    for name in ("diverged", "failed", "interrupted"):
        lost = sum(run.status == name for run in cell.runs)
        if lost:
            found.append(f"{lost} of {len(cell.runs)} {name}")
    return tuple(found)


def _trials(cell: Cell) -> int:
    """How many trials chose a cell's own settings; those borrowed from another count as none."""
    tuning: Mapping[str, Any] = cell.runs[0].tuning
    return 0 if tuning.get("borrowed") else len(tuning.get("trials") or ())


def _edges(tuning: Mapping[str, Any]) -> list[str]:
    """Tuned values at the end of their range, or beyond which nothing was tried."""
    found = [str(name) for name in tuning.get("at_the_edge") or ()]
    trials = [t.get("values") or {} for t in tuning.get("trials") or () if isinstance(t, Mapping)]
    chosen = tuning.get("chosen")
    for name, value in chosen.items() if isinstance(chosen, Mapping) else ():
        tried = [values[name] for values in trials if name in values]
        if name not in found and tried and min(tried) < max(tried):
            found += [str(name)] if value in (min(tried), max(tried)) else []
    return found

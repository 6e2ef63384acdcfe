"""Which settings a cell gets: those of its best trial, or of the best mean over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from conadv.study.outcomes import Outcome
from conadv.study.plan import Plan
from conadv.study.search import WORST, Search, Trial


@dataclass(frozen=True)
class Finalist:
    """A good trial, and how its settings did on other seeds."""

    trial: Trial
    accuracies: tuple[float, ...]
    """On held-out images: the trial's own first, then those of `tuning.confirm_seeds`."""

    @property
    def accuracy(self) -> float:
        """The mean."""
        return statistics.fmean(self.accuracies)


def finalists(
    plan: Plan, search: Search, found: Mapping[str, Outcome], cell: str
) -> list[Finalist]:
    """The best trials of a cell, best mean first; the best trial alone where none is confirmed.

    A confirmation whose loss was not finite counts as `WORST`; one that failed in another way, or
    has not ended yet, says nothing and is left out.

    Args:
        plan: Of the study.
        search: Its trials.
        found: The outcomes that are there, by task.
        cell: Name of a cell that is tuned.

    Returns:
        Nothing if every trial has failed.
    """
    trials = plan.trials(cell)
    if not trials:
        return []
    confirmations = plan.confirmations(cell)
    kept = max((task.rank for task in confirmations), default=1)
    entries = []
    for rank, trial in enumerate(search.ranked(trials[0].cell)[:kept], start=1):
        assert trial.accuracy is not None
        accuracies = [trial.accuracy]
        for task in confirmations:
            outcome = found.get(task.name)
            if task.rank == rank and outcome is not None:
                accuracies += _accuracy(outcome)
        entries.append(Finalist(trial, tuple(accuracies)))
    return sorted(entries, key=lambda entry: -entry.accuracy)  # stable: the better trial first


def _accuracy(outcome: Outcome) -> list[float]:
    if outcome.status == "diverged":
        return [WORST]
    accuracy = outcome.result.get("val_accuracy")
    return [] if outcome.status == "failed" or accuracy is None else [float(accuracy)]

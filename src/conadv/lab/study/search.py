"""The search for settings: optuna's samplers, and its journal in the study folder.

Which run is made by whom is decided in `claims`; here a trial's values are drawn when it is first
asked for, and stay. The sampler of each trial is seeded by (study, trial), not by cell or method:
every method sees the same draws in its first trials, and a study that was killed goes on as if it
had not been. Values are stored relative to what the recipe has, where the study says.
"""

import math
import statistics
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from conadv.lab.study.journal import Journal
from conadv.lab.study.outcomes import Outcome
from conadv.lab.study.plan import Cell, Plan, Range
from conadv.lab.study.schema import Study

GRID_START = 3
"""Trials of a grid whose values are known before any has ended: its middle and both ends."""
WORST = 0.0
"""Accuracy that a trial counts with whose loss was not finite: the sampler keeps away from it."""
_TASK = "task"
_MESSAGE = "message"


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    number: int
    values: Mapping[str, float]
    """Values by setting, as the recipe takes them."""
    accuracy: float | None
    """Accuracy on held-out images; None while it runs, or if it failed and says nothing of its
    settings."""
    message: str | None
    """Why it failed."""


class Search:
    """All searches of a study; any number of processes may have one open.

    Args:
        path: The journal; it is created if need be.
        study: Whose tuning settings count.
    """

    def __init__(self, path: Path, study: Study) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._storage = optuna.storages.JournalStorage(Journal(path))
        self._settings = study.tuning

    def values(self, cell: Cell, number: int) -> dict[str, float]:
        """The settings of a trial, drawn when first asked for; for the holder of its claim."""
        study = self._open(cell, number)
        if (found := self._find(study, number)) is None:
            first = self._settings.first
            point = first[number] if number < len(first) else {}
            point = {name: value for name, value in point.items() if name in cell.space}
            if self._settings.sampler == "grid":
                point = self._on_grid(cell, number)
            study.enqueue_trial(point, user_attrs={_TASK: number})
            found = self._find(study, number)
            assert found is not None
        if found.state == TrialState.WAITING:
            self._storage.set_trial_state_values(found._trial_id, TrialState.RUNNING)
        if not found.state.is_finished():
            trial = optuna.trial.Trial(study, found._trial_id)
            for name, range_ in cell.space.items():
                low, high = range_.low, range_.high
                if self._settings.sampler == "grid":  # which may have gone beyond its range
                    low = high = found.system_attrs["fixed_params"][name]
                trial.suggest_float(name, low, high, log=range_.log)
            found = self._find(study, number)
            assert found is not None
        return _scaled(cell, found.params)

    def tell(
        self, cell: Cell, number: int, accuracy: float | None, message: str | None = None
    ) -> None:
        """Note how a trial ended; what was noted before stays.

        Args:
            cell: Its cell.
            number: Of the trial, whose values were asked for.
            accuracy: On the images held out; `WORST` for a loss that was not finite; None for a
                failure that says nothing about the settings.
            message: Why it failed.
        """
        study = self._open(cell, number)
        found = self._find(study, number)
        if found is None or found.state.is_finished():
            return
        if message is not None:
            self._storage.set_trial_user_attr(found._trial_id, _MESSAGE, message)
        state = TrialState.FAIL if accuracy is None else TrialState.COMPLETE
        values = None if accuracy is None else [accuracy]
        self._storage.set_trial_state_values(found._trial_id, state, values)

    def trials(self, cell: Cell) -> list[Trial]:
        """All trials that were begun, in order."""
        found = {t.user_attrs[_TASK]: t for t in self._open(cell, 0).get_trials(deepcopy=False)}
        return [
            Trial(
                number,
                _scaled(cell, trial.params),
                trial.value if trial.state == TrialState.COMPLETE else None,
                trial.user_attrs.get(_MESSAGE),
            )
            for number, trial in sorted(found.items())
        ]

    def ranked(self, cell: Cell) -> list[Trial]:
        """The trials that did not fail, by falling accuracy, the first of equal ones first."""
        good = [t for t in self.trials(cell) if t.accuracy is not None and t.message is None]
        return sorted(good, key=lambda t: (-(t.accuracy or 0.0), t.number))

    def _on_grid(self, cell: Cell, number: int) -> dict[str, float]:
        """The next value of the one setting, from all trials before this one."""
        tried = [
            (trial.params, trial.value)
            for trial in self._open(cell, number).get_trials(deepcopy=False)
            if trial.user_attrs[_TASK] < number and trial.state == TrialState.COMPLETE
        ]
        return {
            name: next_on_grid(range_, number, [(p[name], v or WORST) for p, v in tried])
            for name, range_ in cell.space.items()
        }

    def _open(self, cell: Cell, number: int) -> optuna.Study:
        common: dict[str, Any] = {
            "study_name": cell.name,
            "storage": self._storage,
            "sampler": self._sampler(number),
            "pruner": optuna.pruners.NopPruner(),
        }
        try:  # creating one writes to the journal even where there is one
            return optuna.load_study(**common)
        except KeyError:
            return optuna.create_study(**common, direction="maximize", load_if_exists=True)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        settings = self._settings
        seed = zlib.crc32(f"{settings.seed} {number}".encode())
        if settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup)

    @staticmethod
    def _find(study: optuna.Study, number: int) -> FrozenTrial | None:
        for trial in study.get_trials(deepcopy=False):
            if trial.user_attrs.get(_TASK) == number:
                return trial
        return None


def next_on_grid(range_: Range, number: int, tried: Sequence[tuple[float, float]]) -> float:
    """Where a logarithmic grid goes on: outwards while its best value is an end, then inwards.

    Args:
        range_: Its first ends; the first three trials take its middle, its low and its high end.
        number: Of the trial, from 0.
        tried: (value, accuracy) of those before it that ended.

    Returns:
        As far out again as the ends were from the middle, or halfway (on the logarithmic scale)
        from the best value to its better neighbour.
    """
    middle = math.sqrt(range_.low * range_.high)
    if number < GRID_START or not tried:
        return (middle, range_.low, range_.high)[min(number, GRID_START - 1)]
    values = sorted(tried)
    best = max(range(len(values)), key=lambda i: values[i][1])
    factor = middle / range_.low
    if best == 0:
        return values[0][0] / factor
    if best == len(values) - 1:
        return values[-1][0] * factor
    beside = max(values[best - 1], values[best + 1], key=lambda pair: pair[1])
    return math.sqrt(values[best][0] * beside[0])


def _scaled(cell: Cell, params: Mapping[str, Any]) -> dict[str, float]:
    """Six digits are enough for any setting, and fit on a command line."""
    return {
        name: float(f"{range_.base * params[name]:.6g}")
        for name, range_ in cell.space.items()
        if name in params
    }


@dataclass(frozen=True)
class Finalist:
    """A good trial, and how its settings did on other seeds."""

    trial: Trial
    accuracies: tuple[float, ...]
    """Accuracies on held-out images: the trial's own first, then of `tuning.confirm_seeds`."""

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

"""``tuned.json`` and ``summary.{json,csv}``: what a study found, for programs and spreadsheets."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from conadv._files import write_json, write_text
from conadv.lab.study.files import StudyFolder
from conadv.lab.study.hypotheses.judge import judge
from conadv.lab.study.hypotheses.registration import Registration
from conadv.lab.study.outcomes import Outcome, read_outcomes
from conadv.lab.study.plan import Cell, Plan
from conadv.lab.study.search import Search, Trial, finalists

_FROM_RESULT = (
    "test_accuracy",
    "robust_accuracy",
    "train_accuracy",
    "train_loss",
    "test_loss",
    "test_images",
    "val_accuracy",
    "compute",
    "steps",
    "images_seen",
    "step_seconds_median",
)


def write_tables(folder: StudyFolder, plan: Plan, search: Search) -> None:
    """Write all of them, as far as the study has come."""
    found = read_outcomes(folder.tasks, [task.name for task in plan.tasks])
    write_json(folder.tuned, tuned(plan, search, found))
    rows = summary(plan, found)
    judged = judge(plan.study, rows, Registration.read(folder.registered))
    stated = [judgement.as_dict() for judgement in judged]
    write_json(folder.summary, {"study": plan.study.name, "hypotheses": stated, "runs": rows})
    write_text(folder.table, _csv(rows))


def tuned(plan: Plan, search: Search, found: Mapping[str, Outcome]) -> dict[str, Any]:
    """What is tuned in each cell, the chosen settings, and all trials.

    ``chosen`` is null until every trial and confirmation has ended, and where all failed.
    ``val_accuracy`` is that of the chosen trial, or the mean over it and its confirmations.
    """
    cells: dict[str, Any] = {}
    for cell in plan.cells:
        if not cell.space:
            cells[cell.name] = {"tuned_as": cell.tuned_as}
            continue
        decisive = [*plan.trials(cell.name), *plan.confirmations(cell.name)]
        complete = all(task.name in found for task in decisive)
        entries = finalists(plan, search, found, cell.name) if complete else []
        best = entries[0].trial if entries else None
        trials = search.trials(cell)
        cells[cell.name] = {
            "space": {name: dataclasses.asdict(range_) for name, range_ in cell.space.items()},
            "chosen": None if best is None else dict(best.values),
            "chosen_trial": None if best is None else best.number,
            "val_accuracy": entries[0].accuracy if entries else None,
            "at_the_edge": [] if best is None else _edges(plan, cell, best.values, trials),
            "trials": [dataclasses.asdict(trial) for trial in trials],
            "confirmed": [
                {"trial": entry.trial.number, "accuracies": [*entry.accuracies]}
                for entry in (entries if plan.confirmations(cell.name) else [])
            ],
        }
    return {"study": plan.study.name, "trials": plan.study.tuning.trials, "cells": cells}


def _edges(
    plan: Plan, cell: Cell, values: Mapping[str, float], trials: Sequence[Trial]
) -> list[str]:
    """Settings whose best value lies within a tenth of the range from its end: widen the range.

    On a grid, which widens itself: the smallest or the largest one tried.
    """
    found = []
    for name, value in values.items():
        range_ = cell.space[name]
        if plan.study.tuning.sampler == "grid":
            tried = [trial.values[name] for trial in trials]
            found += [name] if value in (min(tried), max(tried)) else []
            continue
        low, high, at = range_.low, range_.high, value / range_.base
        if range_.log:
            place = math.log(at / low) / math.log(high / low)
        else:
            place = (at - low) / (high - low)
        if not 0.1 <= place <= 0.9:
            found.append(name)
    return found


def summary(plan: Plan, found: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """One row per final run that has ended, in the study's order."""
    rows = []
    for task in plan.tasks:
        outcome = found.get(task.name)
        if task.kind != "final" or outcome is None:
            continue
        result = outcome.result
        rows.append(
            {
                "cell": task.cell.name,
                "method": task.cell.method,
                "label": result.get("method"),
                "batch": task.cell.batch,
                "seed": task.number,
                "status": outcome.status,
                **{name: result.get(name) for name in _FROM_RESULT},
                "run_seconds": outcome.seconds,
                "settings": dict(outcome.values),
                "folder": outcome.folder,
                "command": outcome.command,
                "message": outcome.message,
            }
        )
    return rows


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            settings = " ".join(f"{name}={value:g}" for name, value in row["settings"].items())
            writer.writerow({**row, "settings": settings})
    return text.getvalue()

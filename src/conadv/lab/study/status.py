"""Where a study stands, read from its folder alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conadv.lab.study.cost import work
from conadv.lab.study.files import StudyFolder
from conadv.lab.study.outcomes import Outcome, read_outcome
from conadv.lab.study.plan import Plan, Task
from conadv.trainer.input.random_images import images_of
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lock.claims import Claims

_TAIL = 400
"""Bytes at the end of a file in which its last line lies."""


@dataclass(frozen=True)
class Working:
    """A run that somebody is at."""

    task: str
    host: str
    pid: int
    share: float
    """Share of its steps that are done."""


class Watch:
    """Looks at a study folder again and again; reads each outcome once.

    Args:
        folder: Of the study.
        plan: Its runs.
    """

    def __init__(self, folder: StudyFolder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.outcomes: dict[str, Outcome] = {}
        self._claims = Claims(folder.tasks, plan.study.stale_after)
        self._size: dict[tuple[str, str], tuple[float, int]] = {}
        self.total = sum(self.weight(task) for task in plan.tasks)
        """Compute of all runs, in forward and backward passes of one image."""

    def weight(self, task: Task) -> float:
        """Compute of a run."""
        return self._of(task)[0]

    def look(self) -> list[Outcome]:
        """The outcomes that are new since the last look."""
        new = []
        for task in self.plan.tasks:
            if task.name in self.outcomes:
                continue
            outcome = read_outcome(self.folder.tasks, task.name)
            if outcome is not None:
                self.outcomes[task.name] = outcome
                new.append(outcome)
        return new

    @property
    def finished(self) -> bool:
        """Whether every run has an outcome."""
        return len(self.outcomes) == len(self.plan.tasks)

    @property
    def compute(self) -> float:
        """Compute of the runs that have an outcome."""
        return sum(self.weight(task) for task in self.plan.tasks if task.name in self.outcomes)

    def working(self) -> list[Working]:
        """The runs that somebody is at."""
        found = []
        for task in self.plan.tasks:
            if task.name in self.outcomes:
                continue
            owner = self._claims.working(task.name)
            if owner is None:
                continue
            host, pid = str(owner.get("host", "?")), int(owner.get("pid", 0))
            found.append(Working(task.name, host, pid, self._share(task)))
        return found

    def partial(self) -> float:
        """Compute done in runs that have no outcome yet, whether or not somebody is at them."""
        open_tasks = (task for task in self.plan.tasks if task.name not in self.outcomes)
        return sum(self.weight(task) * self._share(task) for task in open_tasks)

    def _share(self, task: Task) -> float:
        """Share of its steps that are done."""
        step = _last_step(RunFolder(self.folder.runs / task.name).timing)
        return min(1.0, step / self._of(task)[1])

    def rows(self) -> list[dict[str, Any]]:
        """A table: one row per cell."""
        return [self._row(cell.name) for cell in self.plan.cells]

    def _row(self, cell: str) -> dict[str, Any]:
        own = [task for task in self.plan.tasks if task.cell.name == cell]
        row: dict[str, Any] = {"cell": cell}
        kinds = [("trial", "trials"), ("confirm", "confirmations"), ("final", "final runs")]
        if not self.plan.study.tuning.confirm_seeds:
            kinds.pop(1)
        for kind, title in kinds:
            tasks = [task for task in own if task.kind == kind]
            done = [self.outcomes[task.name] for task in tasks if task.name in self.outcomes]
            bad = sum(outcome.status != "finished" for outcome in done)
            row[title] = f"{len(done)}/{len(tasks)}" + (f" ({bad} not finished)" if bad else "")
            seen = kind == "final" and self.plan.study.final.test
            name = "test_accuracy" if seen else "val_accuracy"
            values = [v for outcome in done if (v := outcome.result.get(name)) is not None]
            if kind == "trial":
                row["best validation"] = f"{max(values):.2%}" if values else "-"
            elif kind == "final":
                title = "mean test" if seen else "mean validation"
                row[title] = f"{sum(values) / len(values):.2%}" if values else "-"
        return row

    def _of(self, task: Task) -> tuple[float, int]:
        """Compute and steps; those of a cell's runs of one kind are the same."""
        key = (task.cell.name, task.kind)
        if key not in self._size:
            recipe = self.plan.make_recipe(task)
            self._size[key] = (work(recipe), recipe.total_steps(images_of(recipe)[2]))
        return self._size[key]


def _last_step(timing: Path) -> int:
    """The step in the last whole line of a run's ``timing.jsonl``; 0 without one."""
    try:
        with timing.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):
        return 0

"""One process that makes runs of a study, one after another, until none is left."""

import dataclasses
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console

from conadv._files import write_text
from conadv.errors import (
    ConadvError,
    DataError,
    Interrupted,
    NonFiniteError,
    RunHeldError,
    in_words,
)
from conadv.lab.study.files import StudyFolder
from conadv.lab.study.hypotheses.registration import register
from conadv.lab.study.outcomes import Outcome, Status, outcome_path, read_outcomes
from conadv.lab.study.plan import Plan, Task, make_plan
from conadv.lab.study.search import GRID_START, WORST, Search, finalists
from conadv.trainer.recipe import Recipe
from conadv.trainer.run.environment import standing_for
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lock.claims import Claim, Claims
from conadv.trainer.run.result import Result
from conadv.trainer.run.signals import StopRequest
from conadv.trainer.start import train

BEATS = 6
"""Signs of life in the time after which a worker counts as dead."""


class ProcessUnusable(Exception):
    """A run failed in a way that may have left this process unusable; its outcome is written."""


class Train(Protocol):
    """How a run is made; `conadv.trainer.start.train`, or a test's own."""

    def __call__(
        self, recipe: Recipe, out: Path, *, resume: bool, console: Console, stop: StopRequest
    ) -> Result:
        """Make or continue a run, as `conadv.trainer.start.train` does."""


class Worker:
    """Makes the runs of one study that nobody else is at.

    Args:
        root: The study folder, prepared.
        console: Where the runs' progress goes.
        make: Makes a run.
        parent: Process that has to be alive; without it the worker stops as after Ctrl-C.
        poll: Seconds between looks for a run when others are at all that is left.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        console: Console,
        make: Train = train,
        parent: int | None = None,
        poll: float = 1.0,
    ) -> None:
        self.folder = StudyFolder(root)
        self.study = self.folder.require_study()
        self.plan: Plan = make_plan(self.study, self.folder.root)
        self.search = Search(self.folder.storage, self.study)
        self.claims = Claims(self.folder.tasks, self.study.stale_after)
        self.console = console
        self.make = make
        self.parent = parent
        self.poll = poll
        self._done: set[str] = set()
        self._stop = StopRequest()

    def work(self) -> None:
        """Make runs until every one of the study has an outcome, here or elsewhere.

        Raises:
            Interrupted: Asked to stop (SIGINT, SIGTERM); the run at hand has a checkpoint.
            DataError: The data set cannot be had.
            ProcessUnusable: This process should be replaced by a new one.
        """
        with self._stop as stop:
            while not all(self.is_done(task) for task in self.plan.tasks):
                self._look_at_parent(stop.ask)
                if stop.requested:
                    raise Interrupted(f"stopped by {stop.reason} between two runs")
                found = self._next()
                if found is None:
                    time.sleep(self.poll)
                else:
                    self._take(*found)

    def is_done(self, task: Task) -> bool:
        """Whether a task has an outcome."""
        if task.name not in self._done:
            if not outcome_path(self.folder.tasks, task.name).exists():
                return False
            self._done.add(task.name)
        return True

    def _next(self) -> tuple[Task, Claim] | None:
        """The first run that can be begun or taken over."""
        for task in self.plan.tasks:
            if self.is_done(task) or not self._is_ready(task):
                continue
            claim = self.claims.take(task.name)
            if claim is None:
                continue
            if not outcome_path(self.folder.tasks, task.name).exists():
                return task, claim
            claim.release()  # finished in between
        return None

    def _is_ready(self, task: Task) -> bool:
        """A run waits for all those that decide its settings."""
        decisive = []
        grid = self.study.tuning.sampler == "grid"
        if task.kind == "trial" and grid and task.number >= GRID_START:
            decisive += self.plan.trials(task.cell.name)[: task.number]
        if task.kind != "trial":
            decisive += self.plan.trials(task.cell.tuned_as)
        if task.kind == "final":
            decisive += self.plan.confirmations(task.cell.tuned_as)
        return all(self.is_done(one) for one in decisive)

    def _take(self, task: Task, claim: Claim) -> None:
        deaths = self.claims.deaths(claim)
        if deaths >= self.study.attempts:
            message = f"{deaths} workers died while they were at it; see the logs"
            self._conclude(task, self._values(task) or {}, "failed", message, 0.0, None)
            return
        try:
            values = self._values(task)
            if values is None:
                message = "all trials of its cell failed"
                if task.kind == "confirm":
                    message = f"fewer than {task.rank} trials of its cell did not fail"
                self._conclude(task, {}, "failed", message, 0.0, None)
                return
            self._run(task, claim, values)
        except (Interrupted, KeyboardInterrupt, DataError):
            claim.release()
            raise

    def _values(self, task: Task) -> dict[str, float] | None:
        """The tuned settings of a run; None if no trial gave any."""
        if task.kind == "trial":
            return self.search.values(task.cell, task.number)
        if task.kind == "confirm":
            ranked = self.search.ranked(task.cell)
            return dict(ranked[task.rank - 1].values) if len(ranked) >= task.rank else None
        cell = task.cell.tuned_as
        if not self.plan.trials(cell):
            return {}
        decisive = [one.name for one in self.plan.confirmations(cell)]
        found = read_outcomes(self.folder.tasks, decisive)
        best = finalists(self.plan, self.search, found, cell)
        return dict(best[0].trial.values) if best else None

    def _run(self, task: Task, claim: Claim, values: dict[str, float]) -> None:
        out = self.folder.runs / task.name
        stop = StopRequest()
        if task.kind == "final":
            register(self.folder, self.study)

        def beat(owned: bool) -> None:
            if not owned:
                stop.ask("another worker, which took this one for dead")
            self._look_at_parent(stop.ask)

        self.console.print(f"{task.name}: {values or 'the settings of the recipe'}", markup=False)
        began = time.perf_counter()
        result: Result | None = None
        status: Status = "finished"
        message: str | None = None
        broken = False
        with claim.beating(min(10.0, self.study.stale_after / BEATS), beat):
            try:
                recipe = self.plan.make_recipe(task, values)
                with standing_for(self._command(task, values)):
                    result = self.make(recipe, out, resume=True, console=self.console, stop=stop)
            except Interrupted:
                if not claim.owned():
                    return  # the other one goes on with it
                raise
            except RunHeldError:
                claim.release()
                return  # somebody else is at it, or was until a moment ago
            except DataError:
                raise  # no other run would fare better
            except NonFiniteError as error:
                status, message = "diverged", str(error)
            except ConadvError as error:
                status, message = "failed", str(error)
            except Exception as error:
                # A device may be unusable after this, or memory full: a new process begins clean.
                status, message, broken = "failed", in_words(error), True
                write_text(self.folder.tasks / task.name / "error.txt", traceback.format_exc())
        if stop.reason is not None:  # heard during the last evaluation, after the last step
            self._stop.ask(stop.reason)
        if not claim.owned():
            return
        self._conclude(task, values, status, message, time.perf_counter() - began, result)
        if broken:
            raise ProcessUnusable(message)

    def _conclude(
        self,
        task: Task,
        values: dict[str, float],
        status: Status,
        message: str | None,
        seconds: float,
        result: Result | None,
    ) -> None:
        """Write down how a run ended: for the sampler, then for everybody."""
        out = self.folder.runs / task.name
        if task.kind == "trial":
            accuracy = result.val_accuracy if result is not None else None
            self.search.tell(
                task.cell, task.number, WORST if status == "diverged" else accuracy, message
            )
        kept = self.study.final if task.kind == "final" else self.study.tuning
        if not kept.keep_checkpoints:
            shutil.rmtree(RunFolder(out).checkpoints, ignore_errors=True)
        Outcome(
            task=task.name,
            kind=task.kind,
            method=task.cell.method,
            batch=task.cell.batch,
            number=task.number,
            status=status,
            message=message,
            folder=str(out.relative_to(self.folder.root)),
            command=self._command(task, values),
            values=values,
            seconds=round(seconds, 3),
            worker=f"{socket.gethostname()}:{os.getpid()}",
            result={} if result is None else dataclasses.asdict(result),
        ).write(outcome_path(self.folder.tasks, task.name))
        said = f"{task.name}: {status}" + (f": {message}" if message else "")
        self.console.print(said, markup=False, highlight=False)

    def _command(self, task: Task, values: dict[str, float]) -> str:
        """What makes this run on its own."""
        return self.plan.command(task, values, Path("runs") / task.name)

    def _look_at_parent(self, ask: Callable[[str], None]) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            ask("the end of the process that had started it")

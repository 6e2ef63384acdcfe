"""Starts workers, replaces those that die, and shows how far the study is."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from conadv._words import duration
from conadv.errors import Interrupted, StudyError
from conadv.lab.study.__main__ import REFUSED, REPLACE_ME
from conadv.lab.study.files import StudyFolder
from conadv.lab.study.outcomes import Outcome
from conadv.lab.study.plan import Plan, make_plan
from conadv.lab.study.schema import Study
from conadv.lab.study.search import Search
from conadv.lab.study.status import Watch
from conadv.lab.study.tables import write_tables
from conadv.trainer.run.signals import StopRequest

POLL = 0.5
"""Seconds between looks at workers and outcomes."""
TABLES_EVERY = 30.0
"""Seconds between writing tuned.json and the summary, at least."""
FRUITLESS = 3
"""So many workers in a row that die without one more outcome or claim end the study."""
PATIENCE = 600.0
"""Seconds that workers get to write checkpoints before they are killed."""


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    attempts: int
    """Claims and outcomes there were when it started."""


@dataclass
class Supervisor:
    """The workers of this machine, and the view of the whole study.

    Args:
        folder: Of the study, prepared.
        plan: Its runs.
        console: Where progress goes.
        workers: Processes; each makes one run after another.
        command: What starts a worker, for tests; None: this package's own.
    """

    folder: StudyFolder
    plan: Plan
    console: Console
    workers: int = 1
    command: Sequence[str] | None = None
    _running: list[_Worker] = field(default_factory=list)
    _fruitless: int = 0
    _tables: float = float("-inf")

    def run(self) -> None:
        """Work until every run has an outcome.

        Raises:
            Interrupted: By Ctrl-C or SIGTERM; the same command goes on.
            StudyError: Workers die one after another without getting anywhere, or one of them
                says that nobody could go on (the data set cannot be had).
        """
        watch = Watch(self.folder, self.plan)
        try:
            with StopRequest() as stop, View(self.console, watch) as view:
                while not watch.finished and not stop.requested:
                    self._staff()
                    time.sleep(POLL)
                    view.update(watch.look())
                    if time.monotonic() - self._tables > TABLES_EVERY:
                        self._write_tables()
                if not watch.finished:
                    self.console.print("stopping: the runs at hand write their checkpoints ...")
                    self._stop()
                    raise Interrupted(
                        f"stopped by {stop.reason} with {len(watch.outcomes)} of "
                        f"{len(self.plan.tasks)} runs done; to go on: "
                        f"conadv study {shlex.quote(str(self.folder.root))}"
                    )
                self._wait(PATIENCE)  # they find out themselves
        finally:
            self._kill()
            self._write_tables()

    def _staff(self) -> None:
        """Start what is missing; note who has died."""
        for worker in [w for w in self._running if w.process.poll() is not None]:
            self._running.remove(worker)
            code = worker.process.returncode
            if code in (0, REPLACE_ME):
                self._fruitless = 0
                continue
            if code == REFUSED:
                raise StudyError(f"worker {worker.number} cannot go on:\n{_tail(worker.log, 1)}")
            self.console.print(
                f"worker {worker.number} ended with {_what(code)}; a new one goes on. What it "
                f"said is in {worker.log}",
                markup=False,
                highlight=False,
            )
            self._fruitless = 0 if self._attempts() > worker.attempts else self._fruitless + 1
            if self._fruitless >= FRUITLESS:
                raise StudyError(
                    f"{FRUITLESS} workers ended without getting to a run; the last one said:\n"
                    f"{_tail(worker.log)}"
                )
        taken = {worker.number for worker in self._running}
        for number in range(self.workers):
            if number not in taken:
                self._running.append(self._start(number))

    def _start(self, number: int) -> _Worker:
        log = self.folder.log(number)
        command = self.command or [sys.executable, "-m", "conadv.lab.study"]
        arguments = [*command, str(self.folder.root), "--parent", str(os.getpid())]
        with log.open("ab") as file:
            # A session of its own: Ctrl-C reaches it through this process only, once.
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment(number),
                start_new_session=True,
            )
        return _Worker(number, process, log, self._attempts())

    def _environment(self, number: int) -> dict[str, str]:
        """Cores and GPUs shared out among the workers."""
        environment = dict(os.environ)
        if self.workers == 1:
            return environment
        cores = max(1, (os.cpu_count() or 1) // self.workers)
        environment.setdefault("OMP_NUM_THREADS", str(cores))
        if devices := _gpus():
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        return environment

    def _attempts(self) -> int:
        return sum(1 for _ in self.folder.tasks.glob("*/*/*.json"))

    def _stop(self) -> None:
        for worker in self._running:
            worker.process.terminate()
        self._wait(PATIENCE)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for worker in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))

    def _kill(self) -> None:
        for worker in self._running:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
        self._running = []

    def _write_tables(self) -> None:
        write_tables(self.folder, self.plan, Search(self.folder.storage, self.plan.study))
        self._tables = time.monotonic()


class View:
    """A bar over the whole study on a terminal, a line per run elsewhere."""

    def __init__(self, console: Console, watch: Watch) -> None:
        self._console = console
        self._watch = watch
        self._began = time.monotonic()
        self._before = 0.0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[runs]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=2,
            disable=not console.is_terminal,
            speed_estimate_period=3600,
        )
        self._bar = self._progress.add_task(watch.plan.study.name, total=watch.total, runs="")

    def __enter__(self) -> Self:
        self._watch.look()
        # What was made before, in a run that was stopped too, says nothing about the speed.
        self._before = self._watch.compute + self._watch.partial()
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, new: Sequence[Outcome]) -> None:
        """Show what has ended, and how far everything is."""
        watch = self._watch
        if not new and not self._console.is_terminal:
            return
        working = watch.working()
        done = watch.compute + watch.partial()
        runs = f"{len(watch.outcomes)}/{len(watch.plan.tasks)} runs"
        names = ", ".join(f"{one.task} {one.share:.0%}" for one in working[:4])
        self._progress.update(self._bar, completed=done, runs=f"{runs}  {names}")
        for outcome in new:
            line = f"{watch.plan.study.name}: {described(outcome)}"
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if new and not self._console.is_terminal:
            spent, made = time.monotonic() - self._began, done - self._before
            left = spent / made * (watch.total - done) if made > 0 else 0.0
            more = f", about {duration(left)} left" if made > 0 and not watch.finished else ""
            self._console.print(f"{watch.plan.study.name}: {runs}{more}", highlight=False)


def described(outcome: Outcome) -> str:
    """A run that has ended, in a line."""
    values = " ".join(f"{name}={value:g}" for name, value in outcome.values.items())
    text = f"{outcome.task} {outcome.status} in {outcome.seconds:.0f} s"
    for name, title in (("val_accuracy", "validation"), ("test_accuracy", "test")):
        if (value := outcome.result.get(name)) is not None:
            text += f", {title} {value:.2%}"
    text += f" ({values})" if values else ""
    return text + (f": {outcome.message}" if outcome.message else "")


def run_study(
    study: Study,
    out: Path | str,
    *,
    workers: int = 1,
    console: Console | None = None,
    prepared: Callable[[StudyFolder, Plan], None] | None = None,
) -> StudyFolder:
    """Make all runs of a study that are missing, on this machine, and write its tables.

    Called again after an interruption, or at the same time on another machine that sees the same
    folder, it does what nobody has done.

    Args:
        study: What to run.
        out: The study folder.
        workers: Processes on this machine.
        console: Where progress goes; None is standard error.
        prepared: Called when the folder is there, before the first run.

    Returns:
        The folder.

    Raises:
        StudyError: The study is impossible, or the folder holds another one.
        Interrupted: By Ctrl-C or SIGTERM; calling again goes on.
    """
    console = console or Console(stderr=True)
    make_plan(study)  # says what is impossible before anything is written
    folder = StudyFolder(out)
    study = folder.prepare(study)
    plan = make_plan(study, folder.root)
    if prepared is not None:
        prepared(folder, plan)
    Supervisor(folder, plan, console, workers).run()
    return folder


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _what(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path, count: int = 15) -> str:
    lines: list[str] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-count:])

"""A run in progress: what is done around each step, and when."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from conadv._words import duration
from conadv.errors import CheckpointError, Interrupted, NonFiniteError, doing
from conadv.trainer.alike import check_alike
from conadv.trainer.build import Built, build
from conadv.trainer.checkpoint.reshard import redeal
from conadv.trainer.checkpoint.rows import take_rows
from conadv.trainer.checkpoint.saver import Saving, snapshot
from conadv.trainer.checkpoint.starting_weights import starting_weights
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed import World
from conadv.trainer.distributed.shared_folder import check_same_folder
from conadv.trainer.distributed.world import launched
from conadv.trainer.outcome import Outcome
from conadv.trainer.recipe import Recipe, dump_recipe
from conadv.trainer.recipe.recipe import flat
from conadv.trainer.run.contention import Contention
from conadv.trainer.run.environment import describe_environment
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lines import JsonLines, NoLines, finite, truncate_after
from conadv.trainer.run.loggers.logger import LoggedRun, Loggers, open_loggers
from conadv.trainer.run.progress import Lines, Watcher, make_watcher
from conadv.trainer.run.result import Result
from conadv.trainer.run.signals import StopRequest
from conadv.trainer.run.trace import StepTrace
from conadv.trainer.step import StepReport, StepRequests

LOGGED_POINTS = 1000
"""About how many points loggers get per curve; ``metrics.jsonl`` has every one."""


class Run:
    """A run in progress: the trainer, and the files and clocks around it.

    Every rank of a run on several devices goes through the same calls; rank 0 alone writes (but
    for the ranks' parts of checkpoints) and talks.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        stop: StopRequest,
        console: Console,
        log_every: int,
        world: World | None = None,
        trace: Path | None = None,
        *,
        resuming: bool = False,
    ) -> None:
        self.recipe = recipe
        self.resuming = resuming
        self.world = world or World()
        self.trace_path = trace
        self.folder = folder
        self.stop = stop
        self.console = console
        self.log_every = log_every
        self.watcher: Watcher = Lines(console, recipe.name, 0, 0)
        self._closers: list[Any] = []
        # What a checkpoint replaces is neither downloaded nor read again.
        checkpoints = CheckpointStore(folder.checkpoints, keep=1)
        self._build(fresh=not (resuming and self.world.on_main(lambda: bool(checkpoints.steps()))))
        self.total = self.trainer.feed.total_steps
        self.log_points_every = max(1, self.total // LOGGED_POINTS)
        self.evaluated_step = 0
        self.val_accuracy: float | None = None
        self.clock = 0.0
        """When the last thing ended that timing does not count, or the last step."""
        self._seconds = 0.0
        """Of the last step."""
        self.watcher = Lines(console, recipe.name, 0, self.total)
        self._notices: list[str] = []
        """What this rank has to tell rank 0."""
        self._launcher = os.getppid() if launched() else None

    def _build(self, *, fresh: bool) -> None:
        """Make the trainer, with the weights that a run begins with if it is fresh."""
        weights = starting_weights(self.recipe) if fresh else None
        self.built: Built = build(
            self.recipe, self.world, weights=weights, download=fresh, say=self._say
        )
        self.fresh = fresh
        self.trainer = self.built.trainer
        self._closing(self.trainer.feed)

    def begin(self) -> None:
        """Create the folder, or bring everything back to the newest checkpoint."""
        self.world.on_main(self._open_folder)
        check_same_folder(self.folder.checkpoints, self.world)
        say, files = self._say, self.folder
        self.saving: Saving = self._closing(
            Saving(self.recipe.checkpoint, files.checkpoints, self.world, self._state, say)
        )
        if self.resuming:
            self._restore()
        check_alike(self.recipe, self.built, self.folder.root, self.world)
        main = self.world.main
        self.watcher = self._closing(
            make_watcher(self.console, self.recipe.name, self.trainer.step, self.total)
        )
        self.stop.heard = self._answer
        self.metrics = self._closing(JsonLines(files.metrics, say) if main else NoLines())
        self.timing = self._closing(JsonLines(files.timing, say) if main else NoLines())
        self.loggers = self._closing(self._open_loggers() if main else Loggers())
        begun = f" go on after step {self.trainer.step}" if self.trainer.step else ""
        self._say(f"{self.recipe.name}: {self.total:,} steps{begun}, kept in {files.root}")
        self._say(self.recipe.division(self.world.size))
        left = self.total - self.trainer.step
        self.trace: StepTrace | None = None
        if self.trace_path is not None and left > 0:
            self.trace = self._closing(StepTrace(self.trace_path, self.world.rank, left))

    def _open_loggers(self) -> Loggers:
        settings = flat(self.recipe)
        told = LoggedRun(self.recipe.name, self.folder.root, self.trainer.step, settings)
        wanted = self.recipe.logging
        return open_loggers(wanted.loggers, wanted.options, told, self._say)

    def complete(self) -> Result:
        """Take the remaining steps and measure the outcome."""
        self._evaluate_if_due()
        self.contention = Contention(torch.get_num_threads())
        self.clock = time.perf_counter()
        stop = self.world.size == 1 and self.stop.requested
        while not self.trainer.finished:
            if stop:
                self._interrupt()
            requested = self._step()
            if self.trace is not None:
                self.trace.step()
            # Ranks agree on what happens between steps, for they have to do it together; a signal
            # that reaches one of them during a step is heard after the next.
            stop = requested.stop if self.world.size > 1 else self.stop.requested
            self._evaluate_if_due()
            self.saving.look()
            if requested.hear:
                self._hear()
            if requested.checkpoint:
                self.saving.start(self.trainer.step)
                self.clock = time.perf_counter()
        self.saving.ensure_saved(self.trainer.step)
        self._hear()
        with doing("measuring what has been trained"):
            return self._outcome.measure()

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        while self._closers:
            self._closers.pop().close()

    def _answer(self, name: str) -> None:
        """Say at once what a signal leads to: the step may last longer than the process is left."""
        took = f" (the last took {duration(self._seconds)})" if self._seconds else ""
        self._say(
            f"{name}: a checkpoint follows when the step at hand has ended{took}. Killed before "
            f"that, the run goes on from its last one: {self.folder.resume_command()}"
        )

    def _say(self, text: str) -> None:
        """Show a message that stays; nothing on ranks other than the first."""
        self.watcher.say(text)

    # -- a step and what follows it ------------------------------------------------------------

    def _open_folder(self) -> None:
        environment = describe_environment(self.built.device, self.world.size)
        if self.resuming:
            self.folder.reopen(environment)
        else:
            self.folder.create(dump_recipe(self.recipe), environment)

    def _step(self) -> StepRequests:
        self.folder.lock.check()
        if self._launcher is not None and os.getppid() != self._launcher:
            self.stop.ask("the end of its launcher")
        requests = StepRequests(
            stop=self.world.size > 1 and self.stop.requested,
            checkpoint=self.world.main and self.saving.due(self.trainer.step + 1),
            hear=bool(self._notices) or self.saving.untold,
        )
        try:
            with doing(f"taking step {self.trainer.step + 1}"):
                report = self.trainer.train_step(requests)
        except NonFiniteError as error:
            self._outcome.write("diverged")
            raise NonFiniteError(f"{error} The run is in {self.folder.root}.") from error
        for notice in self.trainer.feed.notices():
            if self.world.main:
                self._say(f"warning: {notice}")
            else:
                self._notices.append(notice)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self._seconds = seconds
        images_per_second = sum(self.trainer.feed.sizes(report.step - 1)) / seconds
        if report.step % self.log_every == 0 or self.trainer.finished or report.skipped:
            self._log(report)
        self.timing.append(
            {
                "step": report.step,
                "seconds": round(seconds, 6),
                "images_per_second": round(images_per_second, 3),
            }
        )
        if crowded := self.contention.notice():
            self._say(f"warning: {crowded}")
        self.watcher.update(
            report.step, report.epoch, report.loss, report.accuracy, images_per_second
        )
        if report.skipped:
            self._say(
                f"step {report.step}: loss {report.loss:g}, gradient norm "
                f"{report.gradient_norm:g}: skipped, as train.nonfinite says"
            )
        return self.trainer.requested

    def _hear(self) -> None:
        """Say what other ranks have met: checkpoints that they cannot write, damaged images."""
        self.saving.hear()
        for rank, notices in enumerate(self.world.gather(self._notices)):
            for notice in notices:
                self._say(f"warning: rank {rank}: {notice}")
        self._notices.clear()

    def _log(self, report: StepReport) -> None:
        line = {"kind": "train", **finite(asdict(report))}
        self.metrics.append(line)
        if report.step % self.log_points_every == 0:
            self.loggers.scalars("train", report.step, line)

    def _evaluate_if_due(self) -> None:
        """Look at the validation split, unless the run was stopped right after doing so."""
        step, every = self.trainer.step, self.built.evaluate_every
        due = step > 0 and (step % every == 0 or self.trainer.finished)
        if not due or self.evaluated_step == step or self.built.validation is None:
            return
        with doing(f"evaluating after step {step}"):
            found = self.built.score(self.built.validation)
        line = {
            "kind": "eval",
            "step": step,
            "epoch": round(self.trainer.feed.epoch(step), 6),
            "val_loss": found.loss,
            "val_accuracy": found.accuracy,
        }
        self.metrics.append(finite(line))
        self.loggers.scalars("eval", step, line)
        self._say(f"step {step}: validation loss {found.loss:.4f}, accuracy {found.accuracy:.2%}")
        self.evaluated_step = step
        self.val_accuracy = found.accuracy
        self.saving.offer(step, found.accuracy)
        self.clock = time.perf_counter()

    # -- checkpoints ---------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """This rank's part of a checkpoint, copied."""
        step, rows = self.trainer.step, dict[str, Tensor]()
        with doing(f"collecting the checkpoint of step {step}"):
            shared = None
            if self.world.main or self.trainer.exchange.mesh is not None:  # every rank has rows
                shared = take_rows(self.trainer.state_dict(), rows)
            own = {"step": step, "own": self.trainer.rank_state_dict(), "rows": rows}
        if not self.world.main:
            return snapshot(own)  # type: ignore[no-any-return]
        self.folder.lock.check(look=True)
        self.metrics.sync()
        self.timing.sync()
        state = {
            **own,
            "trainer": shared,
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.built.splits.facts.as_dict(),
            "evaluated_step": self.evaluated_step,
            "best_accuracy": self.saving.best_accuracy,
            "val_accuracy": self.val_accuracy,
        }
        return snapshot(state)  # type: ignore[no-any-return]

    def _restore(self) -> None:
        micro_steps = self.recipe.micro_steps
        queued = self.recipe.method.kind.queues_rounds
        state = self.saving.store.load_newest(
            lambda ranks, read: redeal(ranks, read, self.world, micro_steps, queued),
            self.trainer.exchange.mesh,
        )
        step = 0 if state is None else int(state["trainer"]["step"])
        if self.world.main:
            truncate_after(self.folder.metrics, step)
            logged = truncate_after(self.folder.timing, step)
            if logged < step:
                self._say(
                    f"warning: the checkpoint is of step {step}, and the log of {self.folder.root} "
                    f"ends at step {logged}: the lines between were lost with a full disk or a "
                    "power cut. Training goes on from the checkpoint."
                )
        if state is None:
            if self.world.main:
                self.saving.store.go_on(None)
            self._say(f"{self.folder.root} has no finished checkpoint: the run begins anew")
            if not self.fresh:
                self._build(fresh=True)
            return
        if state["data"]["fingerprint"] != self.built.splits.facts.fingerprint:
            raise CheckpointError(
                f"the data set {self.built.splits.facts.name} is not the one that the run in "
                f"{self.folder.root} began with (its fingerprint differs). Restore the data, or "
                "start a new run with another --out."
            )
        if self.world.main:
            self.saving.store.go_on(state)
        with doing(f"going on from the checkpoint of step {step}"):
            self.trainer.load_state_dict(state["trainer"], state["own"])
        self.evaluated_step = int(state["evaluated_step"])
        self.saving.begin(step, float(state["best_accuracy"]))
        self.val_accuracy = state["val_accuracy"]

    def _interrupt(self) -> None:
        self.saving.ensure_saved(self.trainer.step)
        self._outcome.write("interrupted")
        reason = self.stop.reason or "a signal to another rank"
        raise Interrupted(
            f"stopped by {reason} after step {self.trainer.step} of {self.total}; a "
            f"checkpoint is written. To continue exactly there:\n  {self.folder.resume_command()}"
        )

    # -- the end -------------------------------------------------------------------------------

    @property
    def _outcome(self) -> Outcome:
        return Outcome(
            self.built, self.folder, self.saving, self.loggers, self._say, self.val_accuracy
        )

    def _closing(self, thing: Any) -> Any:
        self._closers.append(thing)
        return thing

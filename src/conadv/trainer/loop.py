"""A run in progress: what is done around each step, and when."""

import json
import math
import os
import statistics
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from conadv._words import duration
from conadv.errors import CheckpointError, Interrupted, NonFiniteError
from conadv.trainer.build import Built, build
from conadv.trainer.checkpoint.reshard import redeal
from conadv.trainer.checkpoint.saver import Saving, snapshot
from conadv.trainer.checkpoint.starting_weights import starting_weights
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed import World
from conadv.trainer.distributed.agreement import (
    check_agreement,
    code_checksum,
    weights_checksum,
)
from conadv.trainer.distributed.shared_folder import check_same_folder
from conadv.trainer.distributed.world import launched
from conadv.trainer.recipe import Recipe, dump_recipe
from conadv.trainer.recipe.recipe import flat
from conadv.trainer.run.environment import describe_environment
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lines import JsonLines, NoLines, read_lines, truncate_after
from conadv.trainer.run.loggers.logger import LoggedRun, Loggers, open_loggers
from conadv.trainer.run.pictures import take_pictures, write_pictures
from conadv.trainer.run.progress import Lines, Watcher, make_watcher
from conadv.trainer.run.result import Result, Status
from conadv.trainer.run.signals import StopRequest
from conadv.trainer.run.trace import NoTrace, StepTrace
from conadv.trainer.step import StepReport, StepRequests

LOGGED_POINTS = 1000
"""About how many points loggers get per curve; ``metrics.jsonl`` has every one."""
TRAIN_IMAGES_SCORED = 10_000
"""Over how many training images ``train_accuracy`` is taken at most."""

UNMEASURED = dict.fromkeys(("train_accuracy", "test_accuracy", "robust_accuracy"))


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

    def open(self) -> None:
        """Create the folder, or bring everything back to the newest checkpoint."""
        self.world.on_main(self._open_folder)
        check_same_folder(self.folder.checkpoints, self.world)
        self.saving: Saving = self._closing(
            Saving(
                self.recipe.checkpoint,
                self.folder.checkpoints,
                self.world,
                self._state,
                self._say,
            )
        )
        if self.resuming:
            self._restore()
        self._check_agreement()
        main = self.world.main
        self.watcher = self._closing(
            make_watcher(self.console, self.recipe.name, self.trainer.step, self.total)
        )
        self.stop.heard = self._answer
        say = self._say
        self.metrics = self._closing(JsonLines(self.folder.metrics, say) if main else NoLines())
        self.timing = self._closing(JsonLines(self.folder.timing, say) if main else NoLines())
        self.loggers = self._closing(self._open_loggers() if main else Loggers())
        self._say(self._division())
        left = self.total - self.trainer.step
        self.trace: StepTrace | NoTrace = NoTrace()
        if self.trace_path is not None and left > 0:
            self.trace = self._closing(StepTrace(self.trace_path, self.world.rank, left))

    def _open_loggers(self) -> Loggers:
        settings = flat(self.recipe)
        told = LoggedRun(self.recipe.name, self.folder.root, self.trainer.step, settings)
        wanted = self.recipe.logging
        return open_loggers(wanted.loggers, wanted.options, told, self._say)

    def _division(self) -> str:
        """How the global batch is cut."""
        recipe, world = self.recipe, self.world
        passes = recipe.micro_steps // world.size
        return (
            f"global batch {recipe.batch.global_batch:,}: "
            + (f"{world.size} processes with " if world.size > 1 else "")
            + f"{passes:,} forward pass{'es' if passes > 1 else ''} of {recipe.micro_batch:,} "
            f"images each, normalised in groups of {recipe.norm_group:,}"
        )

    def complete(self) -> Result:
        """Take the remaining steps and measure the outcome."""
        self._evaluate_if_due()
        self.clock = time.perf_counter()
        stop = self.world.size == 1 and self.stop.requested
        while not self.trainer.finished:
            if stop:
                self._interrupt()
            requested = self._step()
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
        return self._finish()

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        while self._closers:
            self._closers.pop().close()

    def _answer(self, name: str) -> None:
        """Say at once what a signal leads to: the step may last longer than the process is left."""
        took = f" (the last took {duration(self._seconds)})" if self._seconds else ""
        self._say(
            f"{name}: a checkpoint is written when the step at hand has ended{took}. Killed before "
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

    def _check_agreement(self) -> None:
        if self.world.size == 1:
            return
        recipe = json.dumps(self.recipe.model_dump(mode="json"), sort_keys=True)
        facts = {
            "the recipe": f"{zlib.crc32(recipe.encode()):08x}",
            "conadv's code": code_checksum(),
            "torch": torch.__version__,
            "the data set": self.built.splits.facts.fingerprint[:12],
            "the number of training images": self.built.splits.train_count,
            "the step": self.trainer.step,
            "the weights": weights_checksum(self.trainer.model),
        }
        check_agreement(
            facts,
            self.world,
            "Start every process with the same command, the same installation and the same data; "
            f"{self.folder.root} must be the same folder for all of them.",
        )

    def _step(self) -> StepRequests:
        self.world.watchdog.doing(f"step {self.trainer.step + 1}")
        self.folder.lock.check()
        if self._launcher is not None and os.getppid() != self._launcher:
            self.stop.ask("the end of its launcher")
        requests = StepRequests(
            stop=self.world.size > 1 and self.stop.requested,
            checkpoint=self.world.main and self.saving.due(self.trainer.step + 1),
            hear=bool(self._notices) or self.saving.untold,
        )
        try:
            report = self.trainer.train_step(requests)
        except NonFiniteError as error:
            self._write_result("diverged")
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
        line = {"kind": "train", **_finite(asdict(report))}
        self.metrics.append(line)
        if report.step % self.log_points_every == 0:
            self.loggers.scalars("train", report.step, line)

    def _evaluate_if_due(self) -> None:
        """Look at the validation split, unless the run was stopped right after doing so."""
        step, every = self.trainer.step, self.built.evaluate_every
        due = step > 0 and (step % every == 0 or self.trainer.finished)
        if not due or self.evaluated_step == step or self.built.validation is None:
            return
        self.world.watchdog.doing(f"the evaluation after step {step}")
        found = self.built.score(self.built.validation)
        line = {
            "kind": "eval",
            "step": step,
            "epoch": round(self.trainer.feed.epoch(step), 6),
            "val_loss": found.loss,
            "val_accuracy": found.accuracy,
        }
        self.metrics.append(_finite(line))
        self.loggers.scalars("eval", step, line)
        self._say(f"step {step}: validation loss {found.loss:.4f}, accuracy {found.accuracy:.2%}")
        self.evaluated_step = step
        self.val_accuracy = found.accuracy
        self.saving.offer(step, found.accuracy)
        self.clock = time.perf_counter()

    # -- checkpoints ---------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """This rank's part of a checkpoint, copied."""
        own = {"step": self.trainer.step, "own": self.trainer.rank_state_dict()}
        lockstep = self.trainer.exchange.lockstep
        shared = self.trainer.state_dict() if self.world.main or lockstep else None
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
            lambda ranks, read: redeal(ranks, read, self.world, micro_steps, queued)
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
        self.trainer.load_state_dict(state["trainer"], state["own"])
        self.evaluated_step = int(state["evaluated_step"])
        self.saving.begin(step, float(state["best_accuracy"]))
        self.val_accuracy = state["val_accuracy"]

    def _interrupt(self) -> None:
        self.saving.ensure_saved(self.trainer.step)
        self._write_result("interrupted")
        reason = self.stop.reason or "a signal to another rank"
        raise Interrupted(
            f"stopped by {reason} after step {self.trainer.step} of {self.total}; a "
            f"checkpoint is written. To continue exactly there: {self.folder.resume_command()}"
        )

    # -- the end -------------------------------------------------------------------------------

    def _finish(self) -> Result:
        built, trainer = self.built, self.trainer
        self.world.watchdog.doing("the last evaluation")
        seen = built.score(built.splits.train(TRAIN_IMAGES_SCORED))
        if trainer.skips_in_a_row or not math.isfinite(seen.loss):
            self._write_result("diverged", train_accuracy=seen.accuracy, train_loss=seen.loss)
            found = (
                f"the last {trainer.skips_in_a_row} step(s) were void"
                if trainer.skips_in_a_row
                else f"the loss on training images is {seen.loss}"
            )
            raise NonFiniteError(
                f"the run in {self.folder.root} ended with numbers that are not finite: {found}. "
                "Lower optimizer.lr, or lengthen lr_schedule.warmup_epochs."
            )
        if not self.recipe.evaluation.test:
            self._say(f"{self.recipe.name}: the test images are left alone, as asked")
            return self._write_result(
                "finished", train_accuracy=seen.accuracy, train_loss=seen.loss
            )
        images = built.splits.test()
        test = built.score(images)
        robust = built.robust_accuracy()
        if self.world.main or trainer.exchange.lockstep:
            self._take_pictures()
        self._say(
            f"{self.recipe.name}: test accuracy {test.accuracy:.2%}, under attack {robust:.2%}, "
            f"compute {trainer.compute:,.0f} images"
        )
        return self._write_result(
            "finished",
            train_accuracy=seen.accuracy,
            train_loss=seen.loss,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            test_images=len(images),
            robust_accuracy=robust,
        )

    def _take_pictures(self) -> None:
        built, path = self.built, self.folder.pictures
        found = take_pictures(
            built.of_images,
            built.splits.test(),
            self.trainer.criterion,
            built.device,
            classes=built.splits.facts.classes,
        )
        if not self.world.main:
            return
        self.loggers.pictures(self.trainer.step, found["clean"], found["adversarial"])
        try:
            write_pictures(path, found)
        except OSError as error:
            self._say(f"warning: could not write {path}: {error.strerror or error}.")

    def _write_result(self, status: Status, **measured: Any) -> Result:
        recipe, trainer = self.recipe, self.trainer
        seconds = [line["seconds"] for line in read_lines(self.folder.timing)]
        result = Result(
            name=recipe.name,
            status=status,
            dataset=recipe.data.dataset,
            model=recipe.model.name,
            method=recipe.method_label,
            schedule=recipe.method.schedule,
            global_batch=recipe.batch.global_batch,
            seed=recipe.seed,
            steps=trainer.step,
            images_seen=trainer.feed.images(trainer.step),
            compute=round(trainer.compute, 3),  # thirds add up to rounding
            step_seconds_median=statistics.median(seconds) if seconds else None,
            val_accuracy=self.val_accuracy,
            warnings=tuple(self.saving.warnings),
            **{**UNMEASURED, **_finite(measured)},
        )
        if status == "finished":
            self.loggers.scalars("result", trainer.step, asdict(result))
        if self.world.main:
            try:
                result.write(self.folder.result)
            except OSError as error:
                # The figures are measured again from the last checkpoint, if nobody reads this.
                self._say(f"{json.dumps(asdict(result))}")
                self._say(
                    f"warning: could not write {self.folder.result}: {error.strerror or error}. "
                    f"Its content is above. To write it again: {self.folder.resume_command()}"
                )
        return result

    def _closing(self, thing: Any) -> Any:
        self._closers.append(thing)
        return thing


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }

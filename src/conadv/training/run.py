"""A run in progress: what is done around each step, and when."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from torch import Tensor

from conadv.errors import CheckpointError, Interrupted, NonFiniteError
from conadv.training.build import Built, build
from conadv.training.checkpoint import CheckpointStore
from conadv.training.environment import describe_environment
from conadv.training.events import open_events
from conadv.training.pictures import write_pictures
from conadv.training.progress import make_watcher
from conadv.training.recipe import Recipe, dump_recipe
from conadv.training.result import Result, Status
from conadv.training.run_folder import JsonLines, RunFolder, read_lines, truncate_after
from conadv.training.signals import StopRequest
from conadv.training.trainer import StepReport

EVENT_POINTS = 1000
"""About how many points TensorBoard gets per curve; ``metrics.jsonl`` has every one."""
TRAIN_IMAGES_SCORED = 10_000
"""Over how many training images ``train_accuracy`` is taken at most."""


class Run:
    """A run in progress: the trainer, and the files and clocks around it."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        stop: StopRequest,
        console: Console,
        log_every: int,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.stop = stop
        self.console = console
        self.log_every = log_every
        self.built: Built = build(recipe)
        self.trainer = self.built.trainer
        self.total = self.trainer.feed.total_steps
        self.event_every = max(1, self.total // EVENT_POINTS)
        self.evaluated_step = 0
        self.best_accuracy = -1.0
        self.val_accuracy: float | None = None
        self.clock = 0.0
        """When the last thing ended that timing does not count, or the last step."""
        self._closers: list[Any] = []

    def open(self, resuming: bool) -> None:
        """Create the folder, or bring everything back to the newest checkpoint."""
        environment = describe_environment(self.built.device)
        if resuming:
            self.folder.reopen(environment)
        else:
            self.folder.create(dump_recipe(self.recipe), environment)
        self.store = CheckpointStore(self.folder.checkpoints, self.recipe.checkpoint.keep)
        if resuming:
            self._restore()
        self.metrics = self._closing(JsonLines(self.folder.metrics))
        self.timing = self._closing(JsonLines(self.folder.timing))
        self.events = self._closing(open_events(self.folder.events, self.trainer.step))
        self.watcher = self._closing(
            make_watcher(self.console, self.recipe.name, self.trainer.step, self.total)
        )
        self.saved_step = self.tried_step = self.trainer.step
        self.saved_time = time.monotonic()

    def complete(self) -> Result:
        """Take the remaining steps and measure the outcome."""
        self._evaluate_if_due()
        batches = self.trainer.batches()
        self.clock = time.perf_counter()
        while not self.trainer.finished:
            if self.stop.requested:
                self._interrupt()
            self._step(batches)
            self._evaluate_if_due()
            self._checkpoint_if_due()
        if self.saved_step != self.trainer.step:
            self._checkpoint()
        return self._finish()

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        while self._closers:
            self._closers.pop().close()

    # -- a step and what follows it ------------------------------------------------------------

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        try:
            report = self.trainer.train_step(batches)
        except NonFiniteError as error:
            self._write_result("diverged")
            raise NonFiniteError(f"{error} The run is in {self.folder.root}.") from error
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
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
            self.watcher.say(
                f"step {report.step}: loss {report.loss:g}, gradient norm "
                f"{report.gradient_norm:g}: skipped, as train.nonfinite says"
            )

    def _log(self, report: StepReport) -> None:
        line = {"kind": "train", **_finite(asdict(report))}
        self.metrics.append(line)
        if report.step % self.event_every == 0:
            self.events.write("train", report.step, line)

    def _evaluate_if_due(self) -> None:
        """Look at the validation split, unless the run was stopped right after doing so."""
        step, every = self.trainer.step, self.built.evaluate_every
        due = step > 0 and (step % every == 0 or self.trainer.finished)
        if not due or self.evaluated_step == step or self.built.validation is None:
            return
        found = self.built.score(self.built.validation)
        line = {
            "kind": "eval",
            "step": step,
            "epoch": round(self.trainer.feed.epoch(step), 6),
            "val_loss": found.loss,
            "val_accuracy": found.accuracy,
        }
        self.metrics.append(_finite(line))
        self.events.write("eval", step, line)
        self.watcher.say(
            f"step {step}: validation loss {found.loss:.4f}, accuracy {found.accuracy:.2%}"
        )
        self.evaluated_step = step
        self.val_accuracy = found.accuracy
        best_before = self.best_accuracy
        if found.accuracy > best_before:
            self.best_accuracy = found.accuracy
            if not self._try_checkpoint(best=True):
                self.best_accuracy = best_before  # the next one that is as good gets its chance
        self.clock = time.perf_counter()

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        settings = self.recipe.checkpoint
        steps = self.trainer.step - max(self.saved_step, self.tried_step)
        minutes = (time.monotonic() - self.saved_time) / 60
        if (settings.every_steps is not None and steps >= settings.every_steps) or (
            settings.every_minutes is not None and steps and minutes >= settings.every_minutes
        ):
            self._try_checkpoint()

    def _try_checkpoint(self, *, best: bool = False) -> bool:
        """A disk that is full for a while must not cost a run that is in good health."""
        try:
            self._checkpoint(best=best)
            return True
        except CheckpointError as error:
            self.tried_step, self.saved_time = self.trainer.step, time.monotonic()
            self.watcher.say(f"warning: {error} Training goes on.")
            return False

    def _checkpoint(self, *, best: bool = False) -> None:
        self.metrics.sync()
        self.timing.sync()
        state = {
            "trainer": self.trainer.state_dict(),
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.built.splits.facts,
            "evaluated_step": self.evaluated_step,
            "best_accuracy": self.best_accuracy,
            "val_accuracy": self.val_accuracy,
        }
        self.store.save(state, self.trainer.step, best=best)
        self.saved_step, self.saved_time = self.trainer.step, time.monotonic()
        self.clock = time.perf_counter()

    def _restore(self) -> None:
        state = self.store.load_newest()
        step = 0 if state is None else int(state["trainer"]["step"])
        for path in (self.folder.metrics, self.folder.timing):
            truncate_after(path, step)
        if state is None:
            return
        if state["data"]["fingerprint"] != self.built.splits.facts["fingerprint"]:
            raise CheckpointError(
                f"the data set {self.built.splits.facts['dataset']} is not the one that the run in "
                f"{self.folder.root} began with (its fingerprint differs). Restore the data, or "
                "start a new run with another --out."
            )
        self.trainer.load_state_dict(state["trainer"])
        self.evaluated_step = int(state["evaluated_step"])
        self.best_accuracy = float(state["best_accuracy"])
        self.val_accuracy = state["val_accuracy"]

    def _interrupt(self) -> None:
        if self.saved_step != self.trainer.step or self.trainer.step == 0:
            self._checkpoint()
        self._write_result("interrupted")
        raise Interrupted(
            f"stopped by {self.stop.reason} after step {self.trainer.step} of {self.total}; a "
            f"checkpoint is written. To continue exactly there: {self.folder.resume_command()}"
        )

    # -- the end -------------------------------------------------------------------------------

    def _finish(self) -> Result:
        built, trainer = self.built, self.trainer
        images = built.splits.test()
        test = built.score(images)
        seen = built.score(built.splits.train(TRAIN_IMAGES_SCORED))
        robust = built.robust_accuracy()
        write_pictures(
            self.folder.pictures, trainer.adversary, images, trainer.criterion, built.device
        )
        self.events.write(
            "test", trainer.step, {"accuracy": test.accuracy, "robust_accuracy": robust}
        )
        self.watcher.say(
            f"{self.recipe.name}: test accuracy {test.accuracy:.2%}, under attack {robust:.2%}, "
            f"compute {trainer.adversary.compute:,.0f} images"
        )
        return self._write_result("finished", seen.accuracy, test.accuracy, robust)

    def _write_result(
        self,
        status: Status,
        train_accuracy: float | None = None,
        test_accuracy: float | None = None,
        robust_accuracy: float | None = None,
    ) -> Result:
        recipe, adversary = self.recipe, self.trainer.adversary
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
            steps=self.trainer.step,
            images_seen=adversary.images,
            compute=round(adversary.compute, 3),  # thirds add up to rounding
            step_seconds_median=statistics.median(seconds) if seconds else None,
            train_accuracy=train_accuracy,
            val_accuracy=self.val_accuracy,
            test_accuracy=test_accuracy,
            robust_accuracy=robust_accuracy,
        )
        result.write(self.folder.result)
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

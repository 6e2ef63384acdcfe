"""The outcome of a run: what it is measured by at its end, and ``result.json``."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from conadv.errors import NonFiniteError
from conadv.trainer.build import Built
from conadv.trainer.checkpoint.saver import Saving
from conadv.trainer.input.images import EvalImages
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lines import finite, read_lines
from conadv.trainer.run.loggers.logger import Loggers
from conadv.trainer.run.pictures import take_pictures, write_pictures
from conadv.trainer.run.result import Result, Status

TRAIN_IMAGES_SCORED = 10_000
"""Most training images that ``train_accuracy`` is taken over."""
UNMEASURED = dict.fromkeys(("train_accuracy", "test_accuracy", "robust_accuracy"))


@dataclass(frozen=True)
class Outcome:
    """What a run has come to; every rank measures, rank 0 alone writes and talks."""

    built: Built
    folder: RunFolder
    saving: Saving
    loggers: Loggers
    say: Callable[[str], None]
    val_accuracy: float | None

    def measure(self) -> Result:
        """Score training and test images, and write what was found.

        Raises:
            NonFiniteError: The run ended with numbers that are not finite.
        """
        built, trainer, name = self.built, self.built.trainer, self.built.recipe.name
        seen = built.score(built.splits.train(TRAIN_IMAGES_SCORED))
        measured: dict[str, Any] = {"train_accuracy": seen.accuracy, "train_loss": seen.loss}
        if trainer.skips_in_a_row or not math.isfinite(seen.loss):
            self.write("diverged", **measured)
            found = (
                f"the last {trainer.skips_in_a_row} step(s) were void"
                if trainer.skips_in_a_row
                else f"the loss on training images is {seen.loss}"
            )
            raise NonFiniteError(
                f"the run in {self.folder.root} ended with numbers that are not finite: {found}. "
                "Lower optimizer.lr, or lengthen lr_schedule.warmup_epochs."
            )
        if not built.recipe.evaluation.test:
            self.say(f"{name}: the test images are left alone, as asked")
            return self.write("finished", **measured)
        images = built.splits.test()
        test = built.score(images)
        robust = built.robust_accuracy()
        if built.world.main or trainer.exchange.lockstep:
            self._take_pictures(images)
        measured |= {"test_accuracy": test.accuracy, "test_loss": test.loss}
        measured |= {"test_images": len(images), "robust_accuracy": robust}
        result = self.write("finished", **measured)
        self.say(f"{name}: {result.summary}")
        return result

    def _take_pictures(self, images: EvalImages) -> None:
        built, path = self.built, self.folder.pictures
        classes = built.splits.facts.classes
        found = take_pictures(
            built.of_images, images, built.trainer.criterion, built.device, classes
        )
        if not built.world.main:
            return
        self.loggers.pictures(built.trainer.step, found["clean"], found["adversarial"])
        try:
            write_pictures(path, found)
        except OSError as error:
            self.say(f"warning: could not write {path}: {error.strerror or error}.")

    def write(self, status: Status, **measured: Any) -> Result:
        """Write ``result.json``, whose content is shown where the disk does not take it."""
        recipe, trainer = self.built.recipe, self.built.trainer
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
            **{**UNMEASURED, **finite(measured)},
        )
        if status == "finished":
            self.loggers.scalars("result", trainer.step, asdict(result))
        if self.built.world.main:
            try:
                result.write(self.folder.result)
            except OSError as error:
                # The figures are measured again from the last checkpoint, if nobody reads this.
                self.say(f"{json.dumps(asdict(result))}")
                self.say(
                    f"warning: could not write {self.folder.result}: {error.strerror or error}. "
                    f"Its content is above. To write it again: {self.folder.resume_command()}"
                )
        return result

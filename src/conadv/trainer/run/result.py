"""``result.json``: what a table needs to know about a run."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from conadv._files import write_json
from conadv.errors import RunFolderError

Status = Literal["finished", "interrupted", "diverged"]


@dataclass(frozen=True)
class Result:
    """The outcome of a run. Accuracies are fractions in [0, 1]; None where not measured."""

    name: str
    """Name of the recipe."""
    status: Status
    """``finished``; ``interrupted`` (resume it); ``diverged`` (the loss was not finite)."""
    dataset: str
    model: str
    method: str
    """What a table calls it."""
    schedule: str
    global_batch: int
    seed: int
    steps: int
    """Weight updates asked for and reached, skipped ones included."""
    images_seen: int
    """Fresh images, adversarial copies not counted."""
    compute: float
    """Cost in units of one forward and backward of one image; an attack step is 2/3."""
    step_seconds_median: float | None
    """Median of the training steps alone: without evaluation, checkpoints and start-up."""
    train_accuracy: float | None
    """Accuracy on training images as they are, without augmentation, in eval mode."""
    val_accuracy: float | None
    test_accuracy: float | None
    robust_accuracy: float | None
    """Accuracy on test images under the recipe's evaluation attack."""
    train_loss: float | None = None
    """Loss on the images of ``train_accuracy``: shows whether training has come to its end."""
    test_loss: float | None = None
    test_images: int | None = None
    """Images of ``test_accuracy``: those of the data set, and with ``data.test_unused`` more."""
    warnings: tuple[str, ...] = ()
    """What went wrong on any process and stopped nothing, such as checkpoints not written."""

    @property
    def summary(self) -> str:
        """What was measured at the end, on one line."""
        measured = {
            "test accuracy": self.test_accuracy,
            "under attack": self.robust_accuracy,
            "validation": self.val_accuracy,
        }
        known = [f"{name} {value:.2%}" for name, value in measured.items() if value is not None]
        cost = f"the compute of ordinary training on {self.compute:,.0f} images"
        return f"{', '.join(known) or 'nothing measured'}, for {cost}"

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON file.

        Raises:
            RunFolderError: It is missing, or lacks a field.
        """
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            return dataclasses.replace(found, warnings=tuple(found.warnings))
        except FileNotFoundError as error:
            raise RunFolderError(
                f"there is no {path}: the run has not ended yet. Continue it with --resume."
            ) from error
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged or of another version: {error}") from error

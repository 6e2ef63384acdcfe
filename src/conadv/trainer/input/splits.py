"""What a run asks of its images, wherever they lie: training, validation, test."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from conadv.trainer.input.feed import Feed
from conadv.trainer.input.images import EvalImages
from conadv.trainer.recipe import Recipe


@dataclass(frozen=True)
class Facts:
    """What networks, attacks and files have to know of a data set."""

    name: str
    fingerprint: str
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean per channel, on [0, 1]; images are standardised with it."""
    std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values, for a checkpoint."""
        return {
            "dataset": self.name,
            "fingerprint": self.fingerprint,
            "channels": self.channels,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def facts_from(values: Mapping[str, Any]) -> Facts:
    """Read what `Facts.as_dict` gave."""
    mean = tuple(values["mean"])
    return Facts(
        values["dataset"],
        values["fingerprint"],
        int(values.get("channels", len(mean))),  # older checkpoints lack it
        tuple(values["classes"]),
        mean,
        tuple(values["std"]),
    )


class Splits(Protocol):
    """The images of a run, wherever they lie."""

    @property
    def facts(self) -> Facts:
        """About the whole data set."""

    @property
    def train_count(self) -> int:
        """Images to train on, those held out not counted."""

    def train_labels(self) -> Tensor:
        """Labels of the images to train on, (N,) int64 on the CPU."""

    def feed(self, recipe: Recipe, slots: range) -> Feed:
        """The training images of each step, of which ``slots`` are this rank's micro-batches."""

    def train(self, count: int | None = None) -> EvalImages:
        """Take at most ``count`` training images, without augmentation."""

    def validation(self) -> EvalImages | None:
        """The images held out, or None."""

    def test(self) -> EvalImages:
        """The test set."""

"""Tiny runs: a small network on made-up images, a second or less each."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from conadv.trainer.checkpoint.store import load_checkpoint
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run.result import Result
from conadv.trainer.run.signals import StopRequest
from conadv.trainer.start import train

TINY = (
    "name=tiny",
    "data.synthetic.size=8",
    "data.synthetic.train_images=56",
    "data.synthetic.test_images=16",
    "data.synthetic.classes=2",
    "data.validation=0.15",
    "data.crop_padding=1",
    "data.flip=true",
    "batch.global_batch=16",
    "batch.micro_batch=8",
    "optimizer.name=sgd",
    "optimizer.lr=0.05",
    "train.steps=6",
    "evaluation.every_epochs=0.7",
    "evaluation.robust_images=8",
    "checkpoint.every_minutes=null",
    "hardware.device=cpu",
)


def tiny(*overrides: str) -> Recipe:
    """The tiny recipe with changes."""
    return load_recipe("smoke", [*TINY, *overrides])


def quietly(recipe: Recipe, out: Path, **options: object) -> Result:
    """Train without output."""
    return train(recipe, out, console=Console(quiet=True), **options)  # type: ignore[arg-type]


class StopAfter(StopRequest):
    """Asks for a stop once it has been looked at so many times: a signal at a chosen step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.reason = "SIGTERM"
        return self.left < 0


def final_state(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where

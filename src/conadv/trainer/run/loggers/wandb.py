"""Weights & Biases, offline unless asked otherwise."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from conadv.trainer.run.loggers.logger import LoggedRun


class WeightsAndBiases:
    """A run of W&B, kept in ``wandb/`` of the run folder; ``wandb sync`` uploads it.

    A resumed run has the same id. Curves are drawn over ``step``, not over W&B's own count, which
    cannot go back to a checkpoint.

    Args:
        run: What is logged.
        options: Keyword arguments of ``wandb.init``. ``mode`` is offline unless it or
            ``$WANDB_MODE`` is given, so that nobody is asked for a key in the middle of a job.
    """

    def __init__(self, run: LoggedRun, **options: Any) -> None:
        given = {
            "project": "conadv",
            "name": run.name,
            "dir": str(run.folder),
            "id": _known_id(run.folder),
            "resume": "allow",
            "config": dict(run.settings),
            "mode": os.environ.get("WANDB_MODE", "offline"),
            "settings": wandb.Settings(console="off", quiet=True, disable_git=True),
            **options,
        }
        self._run = wandb.init(**given)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log them as ``kind/name``."""
        self._run.log({"step": step, **{f"{kind}/{name}": x for name, x in values.items()}})

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Log two rows of images."""
        for name, images in (("clean", clean), ("adversarial", adversarial)):
            shown = [wandb.Image(image) for image in images]
            self._run.log({"step": step, f"pictures/{name}": shown})

    def close(self) -> None:
        """Finish."""
        self._run.finish()


def _known_id(folder: Path) -> str | None:
    """W&B's id of a run that was logged here before; its folders are called ``...-TIME-ID``."""
    before = sorted((folder / "wandb").glob("*run-*-*"))
    return before[-1].name.rpartition("-")[2] if before else None


open_logger = WeightsAndBiases

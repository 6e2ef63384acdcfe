"""Two ranks, of which the second meets a full disk and a damaged image."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.saver import BackgroundWriter
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed.world import leave
from conadv.trainer.input.feed import Cut
from conadv.trainer.loop import Run
from support.launches import recipe
from support.runs import quietly


def train_on_rank(rank: int, folder: str) -> None:
    """Train, and leave what this rank said, with the step at which it did."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    said: list[tuple[int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        say = Run._say

        def kept(run: Run, text: str) -> None:
            said.append((run.trainer.step, text))
            say(run, text)

        patch.setattr(Run, "_say", kept)
        if rank == 1:
            _break(patch)
        settings = ("checkpoint.every_steps=4", "train.steps=12", "data.validation=0")
        quietly(recipe(*settings), Path(folder) / "run")
    (Path(folder) / f"said-{rank}.json").write_text(json.dumps(said))
    leave()


def _break(patch: pytest.MonkeyPatch) -> None:
    """A disk that is full at step 4, known at once, and an image that is damaged at step 9."""
    save, finished = CheckpointStore.save, BackgroundWriter.finished

    def full(store: CheckpointStore, state: Any, step: int, **options: Any) -> Path:
        if step == 4:
            raise CheckpointError("could not write: No space left on device.")
        return save(store, state, step, **options)

    steps: list[int] = []

    def notices(_: Cut) -> list[str]:
        steps.append(len(steps) + 1)
        return ["1 of 72 images is damaged"] if steps[-1] == 9 else []

    patch.setattr(CheckpointStore, "save", full)
    patch.setattr(BackgroundWriter, "finished", lambda writer, **_: finished(writer, wait=True))
    patch.setattr(Cut, "notices", notices)

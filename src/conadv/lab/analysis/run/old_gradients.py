"""Old gradients in a run: one more step from each checkpoint, and what the gradients still say."""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from conadv.lab.analysis import Progress, gradient_agreement
from conadv.lab.analysis.run.stale_pairs import kept_checkpoints
from conadv.trainer.build import build
from conadv.trainer.checkpoint.load_run import SavedRun
from conadv.trainer.checkpoint.reshard import load_weights
from conadv.trainer.checkpoint.store import load_checkpoint
from conadv.trainer.input.feed import Feed
from conadv.trainer.recipe import change_recipe

LEAST = 0.3
"""Cosine of own parts below which copies of weights along old gradients should not be used."""


class MicroBatches:
    """The first micro-batches of a step, as training has them."""

    def __init__(self, feed: Feed, step: int, most: int) -> None:
        self._feed, self._step = feed, step
        self._count = min(most, len(feed.sizes(step)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._feed.micro_batch(self._step, index) for index in range(self._count))


def old_gradients(
    saved: SavedRun, steps: int, micro_batches: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Agreement of gradients at a checkpoint and one step later, for the images of that step.

    The step is the run's own: its images as augmented, the optimizer's state, the learning rate,
    copies that the step makes itself; those that were pending are left out. After a run's last
    step there is no next one: its images and its rate are taken once more. Weights are the
    trained ones, also where the run evaluates an average of them.

    Args:
        saved: The run.
        steps: Look at most at so many checkpoints, spread evenly, the last one among them.
        micro_batches: Of a step whose gradients are compared, at most; their mean is what is
            taken out of them.
        seed: Of dropout.
        progress: Told of each checkpoint.
    """
    changes = [f"hardware.device={saved.device}", "hardware.compile=false"]
    recipe = change_recipe(saved.recipe, changes)
    kept = dict(kept_checkpoints(saved.folder))
    chosen = spread(sorted(kept), steps)
    rows: list[dict[str, Any]] = []
    for at in chosen:
        # Random numbers of a step are its own; building and training set torch's stream.
        with torch.random.fork_rng(devices=[saved.device] if saved.device.type == "cuda" else []):
            trainer = build(recipe, splits=saved.splits).trainer
            state = load_checkpoint(kept[at])["trainer"]
            load_weights(trainer.model, state["model"])
            trainer.update.load_state_dict(state)
            trainer.step = min(at, trainer.feed.total_steps - 1)
            batches = MicroBatches(trainer.feed, trainer.step, micro_batches)
            old = copy.deepcopy(trainer.model)
            report = trainer.train_step()
        found = gradient_agreement(old, trainer.model, batches, trainer.criterion, seed=seed)
        trainer.feed.close()
        rows.append({"step": at, "learning_rate": report.learning_rate, **asdict(found)})
        progress(len(rows), len(chosen))
    return {"steps": rows, "verdict": verdict(rows)}


def spread(steps: list[int], most: int) -> list[int]:
    """Choose at most so many of them, evenly spread, the last one among them."""
    count = min(most, len(steps))
    return [steps[(i + 1) * len(steps) // count - 1] for i in range(count)]


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the table says about copies of weights, in plain words."""
    known = [row for row in rows if row["own"] is not None]
    if not known:
        return "a step has one micro-batch, so none has a part of its own: give batch.micro_batch"
    low = [row["step"] for row in known if row["own"] < LEAST]
    if not low:
        return f"own parts agree at {LEAST:g} or more: copies of weights may be used"
    where = "step" if len(low) == 1 else "steps"
    return (
        f"copies of weights should not be used at {where} {', '.join(map(str, low))}: own parts "
        f"agree below {LEAST:g}"
    )

"""Score a run on ImageNet's further test sets: ReaL, V2, A, R, Sketch, C."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conadv._files import write_beside
from conadv.attack.forward import evaluation_mode
from conadv.branches import branch_names, route
from conadv.errors import RunFolderError, doing
from conadv.trainer.checkpoint.load_run import SavedRun, load_run
from conadv.trainer.data.decoding import CentreCrop
from conadv.trainer.data.sources import FolderSource
from conadv.trainer.evaluation.imagenet import (
    ImageSet,
    SetScore,
    find_sets,
    load_real_labels,
    score_set,
    summary,
    wnids,
)
from conadv.trainer.input.file_splits import FileImages


def evaluate_sets(
    run: Path | str,
    sets: Sequence[str],
    *,
    checkpoint: str = "last",
    branch: str | None = None,
    device: str | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Score the weights of a run on test sets, and keep the outcome in ``imagenet.json``.

    Everything is in eval mode through one branch, in float32, at the recipe's resolution and
    crop. The validation images get ReaL scores too.

    Args:
        run: The run folder, of a run on ImageNet's 1000 classes. Its training images need not be
            there.
        sets: Folders as published, each ``FOLDER`` or ``NAME=FOLDER``, where NAME is what
            `conadv.trainer.evaluation.imagenet.find_sets` takes.
        checkpoint: ``"last"``, ``"best"``, or a file name in the run's checkpoints folder.
        branch: Normalisation branch; None takes the recipe's, ordinarily ``"clean"``.
        device: Such as ``"cuda:1"``; None takes the recipe's.
        workers: Processes that decode.

    Returns:
        What `conadv.trainer.evaluation.imagenet.summary` gives.

    Raises:
        RunFolderError: No run, no such branch, or a run on other classes.
        CheckpointError: The checkpoint cannot be read.
        DataError: A folder is no such test set.
    """
    found = [one for given in sets for one in _find(given)]
    saved = load_run(run, checkpoint=checkpoint, device=device)
    if saved.facts.classes != wnids():
        raise RunFolderError(
            f"{saved.folder.root} was trained on {len(saved.facts.classes)} classes of "
            f"{saved.facts.name}; these test sets are for ImageNet's 1000, called by their WordNet "
            "numbers (n01440764 ...)."
        )
    branch = saved.branch(branch)
    with doing(f"evaluating {saved.folder.root} on test sets"):
        scores = [_score(saved, images, branch, workers) for images in found]
    result = summary(scores, model=saved.recipe.name)
    write_beside(saved.folder.root / "imagenet.json", result)
    return result


def _find(given: str) -> tuple[ImageSet, ...]:
    name, equals, folder = given.partition("=")
    return find_sets(folder, name) if equals else find_sets(given)


def _score(saved: SavedRun, images: ImageSet, branch: str, workers: int) -> SetScore:
    assert images.folder is not None
    source = FolderSource(images.folder, images.title)
    classes = torch.tensor(images.class_indices(source.classes))
    files, batch = saved.recipe.data.files, saved.recipe.evaluation.batch
    crop = CentreCrop(files.eval_size, files.eval_resize)
    everything = torch.arange(len(source))
    loaded = FileImages(
        source, everything, crop, saved.facts.mean, saved.facts.std, workers, files.max_corrupt
    )
    names = branch_names(saved.model)

    def batches() -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        parts = everything.split(batch)
        ready = loaded.batches(batch, saved.device)
        with torch.autocast(saved.device.type, enabled=False):
            for part, (pixels, labels) in zip(parts, ready, strict=True):
                with evaluation_mode(saved.model), route(saved.model, branch if names else None):
                    scores = saved.model(pixels).float()
                where = [Path(source.where(i)).name for i in part.tolist()]
                yield scores, classes[labels.cpu()], where

    real = load_real_labels() if images.variant.name == "val" else None
    return score_set(batches, images, real=real)

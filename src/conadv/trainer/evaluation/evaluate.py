"""Measure a run again: clean accuracy, FGSM and PGD, through either branch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conadv._files import write_beside
from conadv.attack import Attack
from conadv.errors import doing
from conadv.trainer.checkpoint.load_run import SavedRun, load_run
from conadv.trainer.evaluation.classes import ClassCounts
from conadv.trainer.evaluation.robustness import robust_accuracy
from conadv.trainer.input.images import score


def evaluate_run(
    run: Path | str,
    *,
    checkpoint: str = "last",
    branch: str | None = None,
    epsilon: float | None = None,
    steps: int = 10,
    restarts: int = 1,
    images: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate the weights of a run on its test set, and keep the outcome in ``evaluation.json``.

    Everything is in eval mode through one branch, in float32. PGD starts from a random point and
    takes steps of 2.5 * epsilon / steps (Madry et al., 2018).

    Args:
        run: The run folder.
        checkpoint: ``"last"``, ``"best"`` (on the validation split), or a file name in the run's
            checkpoints folder.
        branch: Normalisation branch; None takes the recipe's, ordinarily ``"clean"``.
        epsilon: Radius in pixel units on [0, 1]; None takes the recipe's.
        steps: Steps of PGD; 0 leaves PGD out.
        restarts: Of PGD; an image must survive all.
        images: Attack at most so many test images; None takes the recipe's cap.
        device: Such as ``"cpu"`` or ``"cuda:1"``; None takes the recipe's.
        overrides: Changes of the recipe that leave the weights alone, such as ``data.root=WHERE``
            where the images have moved; see `load_run`.

    Returns:
        ``checkpoint, step, branch, images, test_loss, test_accuracy, attacked_images, norm,
        epsilon, fgsm_accuracy, pgd_steps, pgd_restarts, pgd_accuracy``, and what
        `ClassCounts.as_dict` has of the clean images: ``top5_accuracy, class_accuracy,
        confusion``. Accuracies are fractions, None where not measured.

    Raises:
        RunFolderError: The folder holds no run, or its model has no such branch.
        CheckpointError: The checkpoint cannot be read.
        ValueError: The attack is impossible.
    """
    saved = load_run(run, checkpoint=checkpoint, device=device, overrides=overrides)
    with doing(f"evaluating {saved.folder.root}"):
        found = _measure(saved, checkpoint, saved.branch(branch), epsilon, steps, restarts, images)
    write_beside(saved.folder.root / "evaluation.json", found)
    return found


def _measure(
    saved: SavedRun,
    checkpoint: str,
    branch: str,
    epsilon: float | None,
    steps: int,
    restarts: int,
    images: int | None,
) -> dict[str, Any]:
    settings = saved.recipe.evaluation
    norm = saved.recipe.attack.norm
    radius = saved.recipe.robust_epsilon if epsilon is None else epsilon
    test = saved.splits.test()
    attacked = test.first(images or settings.robust_images)

    def accuracy_under(count: int, random_start: float, times: int) -> float:
        attack = Attack(
            radius, test.mean, test.std, norm=norm, steps=count, random_start=random_start
        )
        batches = attacked.batches(settings.batch, saved.device)
        found = robust_accuracy(saved.model, batches, attack, branch=branch, restarts=times)
        return found.robust_accuracy

    full_precision = torch.autocast(saved.device.type, enabled=False)
    counts = ClassCounts(saved.facts.classes)
    batches = test.batches(settings.batch, saved.device)
    clean = score(saved.model, batches, full_precision, branch, counts)
    return {
        "checkpoint": checkpoint,
        "step": saved.step,
        "branch": branch,
        "images": len(test),
        "test_loss": clean.loss,
        "test_accuracy": clean.accuracy,
        "attacked_images": len(attacked),
        "norm": norm,
        "epsilon": radius,
        "fgsm_accuracy": accuracy_under(1, 0.0, 1),
        "pgd_steps": steps,
        "pgd_restarts": restarts,
        "pgd_accuracy": accuracy_under(steps, 1.0, restarts) if steps else None,
        **counts.as_dict(),
    }

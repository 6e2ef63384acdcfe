"""Staleness in a run: what it logged, and its kept checkpoints compared two by two."""

import copy
import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from conadv.attack import Attack
from conadv.lab.analysis import (
    Batches,
    LoggedAgreement,
    Progress,
    agreement_over_training,
    perturbation_agreement,
)
from conadv.trainer.build import make_attack
from conadv.trainer.checkpoint.load_run import SavedRun
from conadv.trainer.checkpoint.reshard import load_weights
from conadv.trainer.checkpoint.store import CheckpointStore, load_checkpoint
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lines import read_lines


def staleness(
    saved: SavedRun, batches: Batches, pairs: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Agreement of stale and fresh perturbations, logged and measured.

    A pair of checkpoints at steps a < b is a staleness of tau = b - a: the same images are
    attacked with both sets of weights, as the recipe attacks them. Weights are the trained ones,
    also where the run evaluates an average of them.

    Args:
        saved: The run.
        batches: (images, labels) to attack, in the recipe's micro-batches.
        pairs: Compare at most so many pairs, spread evenly over tau.
        seed: Of random starts and targets.
        progress: Told of each pair.
    """
    attack = make_attack(saved.recipe, saved.facts)
    if len(saved.branches) > 1:
        clean, *others = saved.branches
        own = "adversarial" if "adversarial" in others else clean
        made_by = saved.recipe.method.make().resolve(Attack(0.0), clean, own).branch
        attack = replace(attack, branch=attack.branch or made_by)
    rates = {
        int(line["step"]): float(line["learning_rate"])
        for line in read_lines(saved.folder.metrics)
        if line["kind"] == "train"
    }
    kept = dict(kept_checkpoints(saved.folder))
    chosen = choose_pairs(sorted(kept), pairs)
    models = _Weights(saved.model, kept)
    rows = []
    for old, new in chosen:
        found = perturbation_agreement(
            models.at(old, keep=new), models.at(new, keep=old), batches, attack, seed=seed
        )
        between = [rates[step] for step in range(old + 1, new + 1) if step in rates]
        rows.append(
            {
                "from_step": old,
                "to_step": new,
                "tau": new - old,
                "learning_rate": sum(between) / len(between) if between else None,
                **asdict(found),
            }
        )
        progress(len(rows), len(chosen))
    result: dict[str, Any] = {
        "logged": _logged(saved.folder.metrics),
        "pairs": rows,
        "attack": {
            "epsilon": attack.epsilon,
            "norm": attack.norm,
            "steps": attack.steps,
            "branch": attack.branch,
            "mode": attack.mode or "train",
        },
    }
    if not rows:
        result["note"] = (
            "One checkpoint is no pair. To compare steps, train with checkpoint.every_steps=N and "
            "a larger checkpoint.keep."
        )
    return result


def kept_checkpoints(folder: RunFolder) -> list[tuple[int, Path]]:
    """(step, file) of the step files, oldest first."""
    files = CheckpointStore(folder.checkpoints, keep=1).steps()
    return sorted((int(path.stem.removeprefix("step_")), path) for path in files)


def choose_pairs(steps: list[int], most: int) -> list[tuple[int, int]]:
    """Choose at most so many pairs (old, new), evenly spread over their order by distance."""
    every = sorted(itertools.combinations(steps, 2), key=lambda pair: (pair[1] - pair[0], pair))
    if len(every) <= most:
        return every
    if most == 1:
        return every[:1]
    return [every[i * (len(every) - 1) // (most - 1)] for i in range(most)]


def _logged(metrics: Path) -> dict[str, Any] | None:
    """What the run measured itself, where its log has a field ``agreement``."""
    lines = [
        LoggedAgreement(int(line["step"]), float(line["learning_rate"]), float(line["agreement"]))
        for line in read_lines(metrics)
        if line["kind"] == "train" and line.get("agreement") is not None
    ]
    return asdict(agreement_over_training(lines)) if lines else None


class _Weights:
    """Models of two steps at a time, as in training."""

    def __init__(self, model: nn.Module, files: dict[int, Path]) -> None:
        self._model = model
        self._files = files
        self._held: dict[int, nn.Module] = {}

    def at(self, step: int, *, keep: int) -> nn.Module:
        """The model of a step; of the others only that of `keep` stays in memory."""
        self._held = {s: m for s, m in self._held.items() if s in (step, keep)}
        if step not in self._held:
            state = load_checkpoint(self._files[step])["trainer"]["model"]
            model = copy.deepcopy(self._model)
            load_weights(model, state)
            self._held[step] = model.train()
        return self._held[step]

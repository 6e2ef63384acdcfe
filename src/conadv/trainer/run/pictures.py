"""A few clean images, perturbations and adversarial copies, as a person can look at them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conadv._files import write_atomic
from conadv.adversary import Adversary
from conadv.attack import Criterion
from conadv.schedules import Noise
from conadv.trainer.input.images import EvalImages, Images

COUNT, CONTEXT = 8, 64
"""Pictures that are kept, and images attacked together: in train mode they share statistics."""


def take_pictures(
    adversary: Adversary,
    images: EvalImages,
    criterion: Criterion,
    device: torch.device,
    classes: Sequence[str],
) -> dict[str, np.ndarray]:
    """Perturb images the way training does, at the current weights.

    Args:
        adversary: Its attack is used; a noise schedule's noise instead. The weights, statistics
            and pending copies are left as they are.
        images: Where the pictures come from.
        criterion: Of training.
        device: Of the model.
        classes: Names of the classes.

    Returns:
        ``clean`` and ``adversarial`` uint8 (COUNT, H, W, C), ``perturbation`` int16 of the same
        shape, their difference in grey levels, ``labels`` int64 (COUNT,), and the ``classes`` that
        these are indices into.
    """
    few = images.first(CONTEXT).resident()
    batch, labels = next(few.batches(CONTEXT, device))
    attack = adversary.attack
    if isinstance(adversary.schedule, Noise):
        generator = torch.Generator(device).manual_seed(0)
        copies = attack.noise(batch, generator)
    else:
        copies = attack(adversary.model, batch, labels, criterion)
    adversarial = _to_bytes(copies[:COUNT].float(), few)
    clean = few.images[:COUNT].permute(0, 2, 3, 1).cpu().numpy()
    return {
        "clean": clean,
        "perturbation": adversarial.astype(np.int16) - clean.astype(np.int16),
        "adversarial": adversarial,
        "labels": labels[:COUNT].cpu().numpy(),
        "classes": np.array(classes, np.str_),
    }


def write_pictures(path: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write what `take_pictures` gave as ``pictures.npz``."""
    arrays: dict[str, Any] = dict(pictures)
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def _to_bytes(images: Tensor, source: Images) -> np.ndarray:
    shape = (1, -1, 1, 1)
    mean = torch.tensor(source.mean, device=images.device).view(shape)
    std = torch.tensor(source.std, device=images.device).view(shape)
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()

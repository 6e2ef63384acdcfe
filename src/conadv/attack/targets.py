"""Random wrong classes to attack towards."""

from typing import Any

import torch
from torch import Tensor, nn

from conadv._tree import first_tensor


def random_wrong_labels(labels: Any, outputs: Any, generator: torch.Generator) -> Tensor:
    """Wrong classes, uniformly random, in the form that the labels have.

    Integer labels get an integer of another class each; one outside the classes (an ignore index)
    stays as it is. Soft labels (floating point, one value per class) get a one-hot row: every
    class with more than its uniform share counts as a true one, so both of a mixed-up pair do.

    Args:
        labels: integers (N, ...) or soft labels (N, classes, ...).
        outputs: logits (N, classes, ...), or a structure that begins with them.
        generator: on the labels' device.

    Raises:
        ValueError: labels or outputs of another kind, or fewer than two classes.
    """
    logits = first_tensor(outputs)
    if not isinstance(labels, Tensor) or logits is None or logits.ndim < 2:
        raise ValueError(
            "target='random' needs labels as one tensor and outputs of shape (N, classes): "
            "use target=None with this criterion."
        )
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError("target='random' needs at least two classes: use target=None.")
    if not labels.is_floating_point():
        shift = torch.randint(
            1, classes, labels.shape, generator=generator, device=labels.device, dtype=torch.int64
        )
        wrong = (labels.to(torch.int64) + shift) % classes
        inside = (labels >= 0) & (labels < classes)
        return torch.where(inside, wrong.to(labels.dtype), labels)
    if labels.ndim < 2 or labels.shape[1] != classes:
        raise ValueError(
            f"target='random' with labels of shape {tuple(labels.shape)}, {labels.dtype}: give "
            f"class numbers as integers, or one probability for each of the {classes} classes."
        )
    return _wrong_rows(labels.movedim(1, -1), generator).movedim(-1, 1).to(labels.dtype)


def _wrong_rows(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot rows of a random wrong class; classes along the last dimension."""
    classes = labels.shape[-1]
    top = nn.functional.one_hot(labels.argmax(dim=-1), classes).bool()
    true = (labels > labels.sum(dim=-1, keepdim=True) / classes) | top
    # Multi-label rows in which every class is true: any but the first of them.
    true = torch.where(true.all(dim=-1, keepdim=True), top, true)
    # The largest of uniform draws among the wrong classes is a uniform choice of one of them.
    draws = torch.rand(labels.shape, generator=generator, device=labels.device)
    chosen = draws.masked_fill(true, -1.0).argmax(dim=-1)
    return nn.functional.one_hot(chosen, classes)

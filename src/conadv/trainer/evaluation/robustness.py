"""Accuracy under attack: FGSM and PGD-k through either branch, in eval mode."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conadv.attack import Attack
from conadv.attack.forward import evaluation_mode
from conadv.branches import branch_names, route


@dataclass(frozen=True)
class Robustness:
    """Counts over the images that were attacked."""

    images: int
    correct: int
    """Classified correctly without an attack."""
    robust: int
    """Classified correctly without an attack and under every restart of it."""

    @classmethod
    def joined(cls, parts: Iterable["Robustness"]) -> "Robustness":
        """The counts over all images of the parts."""
        parts = list(parts)
        return cls(
            sum(part.images for part in parts),
            sum(part.correct for part in parts),
            sum(part.robust for part in parts),
        )

    @property
    def clean_accuracy(self) -> float:
        """Fraction in [0, 1]."""
        return self.correct / self.images

    @property
    def robust_accuracy(self) -> float:
        """Fraction in [0, 1], never above `clean_accuracy`."""
        return self.robust / self.images


def robust_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Attack,
    *,
    branch: str | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> Robustness:
    """Attack every image and count the ones that stay correct.

    Attack and classification both go through `branch` with running statistics: an image's fate
    does not depend on its neighbours in the batch. The caller's random stream, the model's
    train/eval flags, statistics and gradients are left as they were.

    Args:
        model: Maps images to logits of shape (N, classes).
        batches: (images standardised (N, C, H, W), integer labels (N,)), on the model's device.
        attack: The attack; its ``branch`` and ``mode`` are replaced as said above. One step is
            FGSM, several with a random start PGD (Madry et al., 2018).
        branch: Normalisation branch; None takes the model's first. Ignored without branches.
        restarts: How often to attack each image; it must survive all. More than one needs a
            random start to make a difference.
        seed: Of the random starts.

    Raises:
        ValueError: There are no images, ``restarts`` is below 1, or the branch does not exist.
    """
    if restarts < 1:
        raise ValueError(f"restarts={restarts}: an attack needs at least one.")
    if restarts > 1 and attack.random_start == 0 and attack.target is None:
        raise ValueError(
            f"restarts={restarts} without a random start would repeat the same attack: set the "
            "attack's random_start, or restarts=1."
        )
    names = branch_names(model)
    # Without branches there is nothing to route to: the attack must not name one.
    attack = replace(attack, branch=(branch or names[0]) if names else None, mode="eval")
    images_seen = correct = robust = 0
    generator: torch.Generator | None = None
    with evaluation_mode(model), route(model, attack.branch):
        for images, labels in batches:
            if generator is None:
                generator = torch.Generator(images.device).manual_seed(seed)
            standing = _is_right(model, images, labels)
            correct += int(standing.sum())
            for _ in range(restarts):
                copies = attack(model, images, labels, cross_entropy, generator=generator)
                standing &= _is_right(model, copies, labels)
            robust += int(standing.sum())
            images_seen += len(images)
    if images_seen == 0:
        raise ValueError("There are no images to attack: give at least one batch.")
    return Robustness(images_seen, correct, robust)


def _is_right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(dim=1) == labels  # type: ignore[no-any-return]

"""What an adversary says once, when a loop seems to have turned the method off."""

import warnings
from typing import Any

from torch import Tensor, nn

from conadv._tree import first_tensor
from conadv.adversary.read_ahead import same_batch, sample
from conadv.adversary.round import RoundState
from conadv.attack import Attack
from conadv.branches.split_norm import SplitNorm
from conadv.branches.structure import modules_of


class Notices:
    """Warnings, each at most once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def once(self, name: str, text: str) -> None:
        """Warn, unless a warning of that name was given before."""
        if name not in self._given:
            self._given.add(name)
            warnings.warn(text, RuntimeWarning, stacklevel=5)

    def of_uncollected(self, before: RoundState, images: Any) -> None:
        """A new batch, although the backward of the round before had run."""
        if not before.backward_ran or images is before.given or "collect" in self._given:
            return
        new, old = first_tensor(images), first_tensor(before.given)
        assert new is not None
        assert old is not None
        if same_batch(sample(new), sample(old)):  # a closure that moves its images
            return
        self.once(
            "collect",
            "A new batch, although the round before was not collected: without collect() this is "
            "ordinary training. Call adversary.collect() after backward and before the optimizer's "
            "step, adversary.skip() where a step is void, or make the adversary with "
            "auto_collect=True, which needs no call.",
        )

    def of_unseen_batches(self) -> None:
        """Lookahead that was never shown a batch."""
        self.once(
            "unseen",
            "lookahead has not been shown a batch to come, so it made no copies: this is ordinary "
            "training. Iterate over adversary.batches(loader), or call adversary.peek(images, "
            "labels) with the batch of tau rounds later before each collect().",
        )

    def of_foreign_images(self) -> None:
        """Images of a round that are not those that were attacked for it."""
        self.once(
            "foreign",
            "Other images were attacked for this round than it was given, so it has no copies: "
            "what batches() reads ahead, or peek() is shown, must be the very batch of tau rounds "
            "later. The order of the loader differs from the one before (after a restart, say), or "
            "the images are changed in between.",
        )

    def of_units(self, attack: Attack, images: Tensor) -> None:
        """Images that are not in the units that the attack was told of."""
        reason = attack.why_not_pixels(images)
        if reason is not None:
            self.once("units", reason)

    def of_gradient(self, zeros: float, nans: float) -> None:
        """Most of the input gradient is zero or NaN."""
        if nans > 0.5:
            self.once(
                "nan",
                f"{nans:.0%} of the input gradient is NaN: the loss or the network overflowed, and "
                "those pixels stay as they are. Look for the first NaN in the forward pass, and "
                "call adversary.skip() instead of collect() where a step is void.",
            )
        elif zeros > 0.5:
            # Every time: it is looked at every hundred rounds.
            warnings.warn(
                f"{zeros:.0%} of the input gradient is exactly zero, and sign(0) = 0 leaves those "
                "pixels as they are. With fp16 the loss scale is too small for the gradient of "
                "single images: scale the loss as a mean over the micro-batch and divide the "
                "accumulated gradients once, or use bf16.",
                RuntimeWarning,
                stacklevel=5,
            )


class TrainedBranches:
    """Whether an optimizer that moves one branch of a layer moves the others too.

    Args:
        model: the bare model; None: nothing is looked at.
    """

    def __init__(self, model: nn.Module | None) -> None:
        layers = [] if model is None else modules_of(model)
        layer = next((m for m in layers if isinstance(m, SplitNorm) and m.trainable()), None)
        branches = {} if layer is None else layer.trainable()
        self._branches = {name: found[0] for name, found in branches.items() if found}
        self._versions: dict[str, int] = {}

    def look(self, notices: Notices) -> None:
        """Compare how often each branch's parameters were written to; until the first step."""
        if len(self._branches) < 2:
            return
        versions = {name: parameter._version for name, parameter in self._branches.items()}
        before, self._versions = self._versions or versions, self._versions or versions
        moved = {name: versions[name] != before[name] for name in versions}
        if not any(moved.values()):
            return
        still = [name for name in moved if not moved[name]]
        self._branches = {}
        if still:
            notices.once(
                "optimizer",
                f"The optimizer's step did not touch the branch {', '.join(still)}: an optimizer "
                "that was made before split_norms does not know the new parameters, and they never "
                "train. Make it afterwards, from model.parameters(); adversary.check(optimizer) "
                "tells before the first step.",
            )

"""Saved weights back into a network of the same kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strictly load a plain mapping of what ``model.state_dict()`` once held.

    A state dict carries the versions of the modules' formats beside its tensors, and a checkpoint
    of tensors alone does not. Modules that ask for theirs (torchvision's MNASNet) refuse a state
    without; they get the present ones, which is what wrote it.

    Raises:
        RuntimeError: keys or shapes that do not fit.
    """
    versioned: OrderedDict[str, Tensor] = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(versioned)

"""Weights that a network begins with, and those of them that stay."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from conadv._words import did_you_mean, nearest
from conadv.errors import RecipeError


@torch.no_grad()
def start_from(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Copy weights of the same architecture into a network; its last layer may be another one.

    Args:
        model: Any; its last layer with parameters stays as it is where shapes differ or the
            weights have none.
        weights: By name, as in a state dict.

    Returns:
        What was taken, what is new and what was left, in a sentence.

    Raises:
        RecipeError: Another layer is missing or has another shape.
    """
    own = model.state_dict()
    taken = {n: w for n, w in weights.items() if n in own and w.shape == own[n].shape}
    counters = {n for n in own if n.endswith("num_batches_tracked")}
    new = [n for n in own if n not in taken and n not in counters]
    # The last module that has parameters of its own.
    head = next(reversed([n.rpartition(".")[0] for n, _ in model.named_parameters()]), "")
    wrong = [n for n in new if n.rpartition(".")[0] != head]
    if wrong:
        given = weights.get(wrong[0])
        shape = f"has shape {tuple(given.shape)}" if given is not None else "is not in it"
        more = f" So it is with {len(wrong) - 1} more." if len(wrong) > 1 else ""
        raise RecipeError(
            f"model.weights: they are of another network: {wrong[0]} of shape "
            f"{tuple(own[wrong[0]].shape)} {shape}.{more} Give the model.name and model.options "
            "that they were trained with; only the last layer may differ."
        )
    for name, value in taken.items():
        own[name].copy_(value)
    left = [n for n in weights if n not in own]
    said = f"{len(taken):,} tensors"
    said += f"; new: {', '.join(new)}" if new else ""
    return said + (f"; not used: {', '.join(left)}" if left else "")


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Take the gradient from the parameters whose names match a pattern.

    Raises:
        RecipeError: A pattern matches no name, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [p for name, p in named.items() if fnmatchcase(name, pattern)]
        if not matched:
            hint = did_you_mean(nearest(pattern.rstrip("*."), named))
            raise RecipeError(f"model.freeze: {pattern!r} matches no parameter.{hint}")
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise RecipeError("model.freeze: nothing is left to train. Leave the last layer out of it.")

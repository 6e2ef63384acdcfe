"""Which parameters are decayed and adapted: weights are, bias and norm are not."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from conadv._words import did_you_mean, nearest

_BRANCH = re.compile(r"(?<=\.)norms\.[^.]+\.")
"""What `split_norms` puts into the names of a layer's parameters."""


def param_groups(
    model: nn.Module, weight_decay: float = 0.0, *, exclude: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Two parameter groups for `conadv.optim.LARS` or `conadv.optim.LAMB`.

    The first holds the weights, with ``weight_decay`` and ``adapt=True``. The second holds every
    parameter of at most one dimension (bias, and scale and shift of every norm layer, so of every
    branch of a split one too), with no weight decay and ``adapt=False``, that is a trust ratio of
    1. The LARS recipes were tuned this way. Frozen parameters are left out, and tied ones appear
    once. Either group may be empty.

    Other optimizers do not know the key ``adapt``; those of torch ignore it.

    Args:
        model: any module, before or after `conadv.split_norms`.
        weight_decay: of the first group, at least 0.
        exclude: further parameters for the second group, by their names in
            ``model.named_parameters()``. ``*`` and ``?`` are wildcards: ``"*.pos_embed"``.

    Raises:
        ValueError: nothing to train, a lazy module that has not seen an input yet, a pattern
            that matches no name, or a negative ``weight_decay``.

    Example:
        >>> from torch import nn
        >>> from conadv.optim import LARS, param_groups
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> weights, rest = param_groups(model, weight_decay=5e-5)
        >>> len(weights["params"]), len(rest["params"])
        (1, 3)
        >>> optimizer = LARS([weights, rest], lr=1.0)
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}: give a number of at least 0.")
    if isinstance(exclude, str):
        raise ValueError(f"exclude={exclude!r}: give a list of names, such as [{exclude!r}].")
    named = dict(model.named_parameters())
    lazy = [name for name, parameter in named.items() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"{lazy[0]!r} has no shape yet: run one batch through the lazy modules of the model "
            "before making its optimizer."
        )
    patterns = list(exclude)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            hint = did_you_mean(map(repr, nearest(pattern, named, 1)))
            raise ValueError(f"exclude: {pattern!r} matches no parameter of the model.{hint}")
    weights: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named.items():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or any(fnmatchcase(name, p) for p in patterns)
            (rest if plain else weights).append(parameter)
    if not weights and not rest:
        raise ValueError(
            f"{type(model).__name__} has nothing to train: it has {len(named)} parameters, none of "
            "which requires a gradient."
        )
    return [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": rest, "weight_decay": 0.0, "adapt": False},
    ]


def classifier_apart(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups of `param_groups` with the last linear layer's weight in one of its own.

    It is decayed but not adapted: `conadv.optim.Muon` leaves it to AdamW.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    if not linear:
        return groups
    weights, rest = groups
    last = linear[-1].weight
    others = [p for p in weights["params"] if p is not last]
    return [{**weights, "params": others}, {**weights, "params": [last], "adapt": False}, rest]


def with_lr_factors(
    groups: list[dict[str, Any]], model: nn.Module, factors: Mapping[str, float], lr: float
) -> list[dict[str, Any]]:
    """The groups, parted where a pattern gives some of their parameters another learning rate.

    Args:
        groups: of `param_groups`.
        model: whose parameters they hold.
        factors: on the learning rate, by pattern; a parameter goes by the first one that matches
            its name, ``*`` and ``?`` being wildcards. Branches of a split layer share the name
            that it had before it was split.
        lr: that of the parameters which no pattern matches.

    Raises:
        ValueError: a pattern that matches no name.
    """
    names = {p: _BRANCH.sub("", name) for name, p in model.named_parameters()}
    for pattern in factors:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            hint = did_you_mean(map(repr, nearest(pattern, set(names.values()), 1)))
            raise ValueError(f"{pattern!r} matches no parameter of the model.{hint}")
    found = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[parameter]
            factor = next((f for p, f in factors.items() if fnmatchcase(name, p)), 1.0)
            parts.setdefault(factor, []).append(parameter)
        found += [{**group, "params": part, "lr": lr * f} for f, part in parts.items()]
    return found

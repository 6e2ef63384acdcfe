"""Concurrent adversarial learning for large-batch training, in PyTorch.

Importing this package imports nothing else: each public name brings what it needs, torch with it,
when it is first used. See `conadv.optim` for LARS and LAMB, and the command `conadv` for training,
evaluation and benchmarks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conadv.adversary import Adversary, Diagnostics
    from conadv.attack import Attack
    from conadv.branches import branch_names, plain, route, split_norms
    from conadv.schedules import (
        Lookahead,
        Noise,
        PiecewiseLinear,
        Recycled,
        Sequential,
        Vanilla,
    )
    from conadv.weights import WeightAdversary, WeightAttack

__version__ = "0.2.0"

__all__ = [
    "Adversary",
    "Attack",
    "Diagnostics",
    "Lookahead",
    "Noise",
    "PiecewiseLinear",
    "Recycled",
    "Sequential",
    "Vanilla",
    "WeightAdversary",
    "WeightAttack",
    "branch_names",
    "plain",
    "route",
    "split_norms",
]

_HOMES = {
    "adversary": ("Adversary", "Diagnostics"),
    "attack": ("Attack",),
    "branches": ("branch_names", "plain", "route", "split_norms"),
    "optim": (),
    "schedules": (
        "Lookahead",
        "Noise",
        "PiecewiseLinear",
        "Recycled",
        "Sequential",
        "Vanilla",
    ),
    "weights": ("WeightAdversary", "WeightAttack"),
}
"""The library's rooms, and the public names that each of them gives."""
_HOME_OF = {name: room for room, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name or a room of the library, imported when it is first used."""
    if name in _HOMES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})

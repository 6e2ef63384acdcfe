"""Concurrent adversarial learning for large-batch training, in PyTorch.

Importing this package imports torch and nothing of the trainer. See `conadv.optim` for LARS and
LAMB, and the command `conadv` for training, evaluation and benchmarks.
"""

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

__version__ = "0.1.0"

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
    "branch_names",
    "plain",
    "route",
    "split_norms",
]

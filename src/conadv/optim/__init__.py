"""Optimizers and learning rates for large batches. Importing this package needs torch alone."""

from conadv.optim.groups import param_groups
from conadv.optim.lamb import LAMB
from conadv.optim.lars import LARS
from conadv.optim.learning_rate import (
    WarmupCosine,
    WarmupPolynomial,
    decay_factor,
    linear_lr,
    scaled_lr,
    sqrt_lr,
    warmup_cosine,
    warmup_poly,
)
from conadv.optim.muon import Muon
from conadv.optim.sharpness import SAM, AsyncSAM
from conadv.optim.variance_reduced import VarianceReduction

__all__ = [
    "LAMB",
    "LARS",
    "SAM",
    "AsyncSAM",
    "Muon",
    "VarianceReduction",
    "WarmupCosine",
    "WarmupPolynomial",
    "decay_factor",
    "linear_lr",
    "param_groups",
    "scaled_lr",
    "sqrt_lr",
    "warmup_cosine",
    "warmup_poly",
]

"""The object that a training loop holds."""

from conadv.adversary.adversary import Adversary, Diagnostics
from conadv.adversary.round import Mixed

__all__ = [
    "Adversary",
    "Diagnostics",
    "Mixed",
]

"""The object that a training loop holds."""

from conadv.adversary.adversary import Adversary, Diagnostics

__all__ = [
    "Adversary",
    "Diagnostics",
]

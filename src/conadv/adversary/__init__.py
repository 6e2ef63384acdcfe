"""The object that a training loop holds."""

from conadv.adversary.adversary import Adversary
from conadv.adversary.round import Diagnostics, Mixed

__all__ = ["Adversary", "Diagnostics", "Mixed"]

"""What one adversarial step is: norm balls, pixel units, targets, fp16, passes."""

from conadv.attack.attack import Attack, Criterion, Perturbed

__all__ = [
    "Attack",
    "Criterion",
    "Perturbed",
]

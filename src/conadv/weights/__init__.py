"""Copies of the weights: perturbed per micro-batch, along gradients that may be old."""

from conadv.weights.adversary import WeightAdversary
from conadv.weights.attack import WeightAttack
from conadv.weights.schedule import WeightSchedule
from conadv.weights.schedules import Lookahead, Noise, Recycled, Sequential, Slot

__all__ = [
    "Lookahead",
    "Noise",
    "Recycled",
    "Sequential",
    "Slot",
    "WeightAdversary",
    "WeightAttack",
    "WeightSchedule",
]

"""What a schedule says about itself: its settings, and what its step costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ATTACK_STEP_COMPUTE = 2 / 3
"""One attack step over an image, in units of one forward and backward: 2F of 3F."""


@dataclass(frozen=True)
class Setting:
    """A keyword argument of a schedule beside share and weight; a recipe has a field for it."""

    default: bool | int | float | str
    """What it is where nobody sets it; its type is that of every value."""
    meaning: str
    """What it does, in one sentence."""
    low: float | None = None
    """Least value of a number."""
    high: float | None = None
    """Greatest value of a number."""
    choices: tuple[str, ...] = ()
    """Allowed words, where it is one."""
    in_steps: bool = False
    """Whether a trainer counts it in steps, where the schedule counts rounds (micro-batches)."""
    same_as: Mapping[Any, str] = field(default_factory=dict)
    """Values with which the schedule would be another one, by that one's name."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as a range of allowed ones; None: nothing."""
        if self.choices:
            return None if value in self.choices else f"allowed are {', '.join(self.choices)}"
        kind = type(self.default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (kind is float and not number) or (kind is not float and type(value) is not kind):
            return f"give a value of type {kind.__name__}, such as {self.default!r}"
        low, high = self.low, self.high
        if (low is not None and value < low) or (high is not None and value > high):
            ends = [f"from {low:g}"] * (low is not None) + [f"up to {high:g}"] * (high is not None)
            return f"give a number {' '.join(ends)}"
        return None


@dataclass(frozen=True)
class Work:
    """What one step goes over, per image of an ordinary step."""

    fresh: float = 1.0
    """Fresh images that are trained on."""
    copies: float = 0.0
    """Copies that are trained on."""
    attacked: float = 0.0
    """Images that are attacked in passes of their own, times the steps of the attack."""
    input_gradients: float = 0.0
    """Images trained on whose backward pass goes on to the pixels."""
    views: float = 0.0
    """Further views of each fresh image that are trained on."""
    ascents: float = 0.0
    """Images whose weight gradients are taken in passes of their own (copies of weights)."""

    @property
    def images(self) -> float:
        """Everything that one forward and backward pass goes over."""
        return self.fresh * (1 + self.views) + self.copies

    @property
    def compute(self) -> float:
        """All of it in units of one forward and backward, the first layer's input left out."""
        return self.images + self.attacked * ATTACK_STEP_COMPUTE + self.ascents

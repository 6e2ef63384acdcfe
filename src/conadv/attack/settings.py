"""The settings of an attack, and what they may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conadv.attack import geometry
from conadv.attack.checks import check_units, is_finite
from conadv.attack.pixels import channel_values


@dataclass(frozen=True)
class AttackSettings:
    """What `conadv.Attack` takes; its docstring says what each means."""

    epsilon: float
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    norm: geometry.Norm = "linf"
    steps: int = 1
    step_size: float | None = None
    random_start: float = 0.0
    target: Literal["random"] | None = None
    branch: str | None = None
    mode: Literal["train", "eval"] | None = None
    pixel_range: tuple[float, float] | None = (0.0, 1.0)
    epsilon_min: float | None = None
    block_size: int = 1
    at: str | None = None
    per: Literal["sample", "token"] = "sample"

    def __post_init__(self) -> None:
        if self.at is not None:
            object.__setattr__(self, "pixel_range", None)
        object.__setattr__(self, "mean", channel_values("mean", self.mean))
        object.__setattr__(self, "std", channel_values("std", self.std))
        if self.norm not in geometry.NORMS:
            raise ValueError(f"norm={self.norm!r}: allowed are {', '.join(geometry.NORMS)}.")
        if not (is_finite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon={self.epsilon!r}: give a finite number, 0 or more.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r}: a whole number of steps, at least one.")
        if self.step_size is not None and not (is_finite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size={self.step_size!r}: a finite number above 0, or None.")
        if not (is_finite(self.random_start) and 0 <= self.random_start <= 1):
            raise ValueError(f"random_start={self.random_start!r}: a probability, from 0 to 1.")
        if self.epsilon_min is not None and not (
            is_finite(self.epsilon_min) and 0 <= self.epsilon_min <= self.epsilon
        ):
            raise ValueError(
                f"epsilon_min={self.epsilon_min!r}: from 0 to epsilon={self.epsilon:g}, or None."
            )
        if (
            isinstance(self.block_size, bool)
            or not isinstance(self.block_size, int)
            or self.block_size < 1
        ):
            raise ValueError(f"block_size={self.block_size!r}: a whole number of pixels, from 1.")
        if self.target not in (None, "random"):
            raise ValueError(f"target={self.target!r}: allowed are None and 'random'.")
        if self.mode not in (None, "train", "eval"):
            raise ValueError(f"mode={self.mode!r}: allowed are None, 'train' and 'eval'.")
        self._check_place()
        self._check_channels()
        self._check_units()

    def _check_place(self) -> None:
        if self.at is not None and (self.mean is not None or self.std is not None):
            raise ValueError(
                f"at={self.at!r}: a layer's output has no mean and std; leave them out."
            )
        if self.per not in ("sample", "token"):
            raise ValueError(f"per={self.per!r}: allowed are 'sample' and 'token'.")
        if self.per == "token" and (self.pixel_range is not None or self.block_size > 1):
            raise ValueError(
                "per='token' is for inputs without pixels: give at=, or pixel_range=None, and no "
                "block_size."
            )
        if self.per == "token" and self.epsilon_min is not None:
            raise ValueError("per='token' has one radius for all: leave epsilon_min out.")

    def _check_channels(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("Give mean and std together, or neither for unstandardised images.")
        if (
            isinstance(self.mean, tuple)
            and isinstance(self.std, tuple)
            and len(self.mean) != len(self.std)
        ):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel "
                "in both."
            )
        if self.std is not None:
            values = self.std if isinstance(self.std, tuple) else (self.std,)
            if not all(v > 0 for v in values):
                raise ValueError(f"std={self.std!r}: every channel's must be above 0.")

    def _check_units(self) -> None:
        if self.pixel_range is None:
            return
        if len(self.pixel_range) != 2 or not self.pixel_range[0] < self.pixel_range[1]:
            raise ValueError(f"pixel_range={self.pixel_range!r}: give (low, high), low < high.")
        low, high = (float(bound) for bound in self.pixel_range)
        object.__setattr__(self, "pixel_range", (low, high))
        check_units(self.mean, self.std, low, high)
        for name, value in (("epsilon", self.epsilon), ("step_size", self.step_size)):
            if value is not None and self.norm == "linf" and value > high - low:
                raise ValueError(
                    f"{name}={value:g} is wider than the pixel range {low:g} to {high:g}. It is in "
                    f"pixel units, not grey levels: did you mean {name}={value:g}/255?"
                )

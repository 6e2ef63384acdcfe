"""What a recipe's values may look like in a file or on a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from conadv._words import did_you_mean, is_path, nearest

if TYPE_CHECKING:
    from conadv.schedules import PiecewiseLinear

Points = tuple[tuple[float, float], ...]


LARGEST = 1e30
"""No setting is larger: products with it are still numbers in float32."""


def parse_number(value: Any) -> Any:
    """A number, also given as a fraction ("4/255") or in a form YAML takes for text ("1e-3")."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        top, slash, bottom = value.replace("_", "").partition("/")
        try:
            value = float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            raise ValueError("not a number") from None
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    if isinstance(value, int | float) and abs(value) > LARGEST:
        raise ValueError(f"more than {LARGEST:g}")
    return value


def parse_whole(value: Any) -> Any:
    """A whole number; 1e4 and "10_000" are fine, 2.5 and true are not."""
    number = parse_number(value)
    if isinstance(number, float):
        if number != int(number):
            raise ValueError("a whole number is needed")
        return int(number)
    return number


def parse_flag(value: Any) -> Any:
    """True or false, with the words that YAML 1.1 has for them."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def parse_text(value: Any) -> Any:
    """Text; what YAML took for something else has to be quoted."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"text is needed: put quotes around it, '{value}'")
    if value is not None and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ValueError(
            "its bytes are not UTF-8, as those of a recipe have to be: rename it, or give it "
            "another name with ln -s"
        )
    return value


def parse_scheduled(value: Any) -> float | Points:
    """A number in [0, 1], or [[progress, value], ...] with progress rising from 0 to 1."""
    if not isinstance(value, list | tuple):
        return _share(value)
    points = []
    for point in value:
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise ValueError(f"{point!r} is not a pair [progress, value]")
        points.append((_share(point[0]), _share(point[1])))
    positions = [progress for progress, _ in points]
    if not points or positions != sorted(positions):
        raise ValueError("the points must be in rising order of progress, at least one")
    return tuple(points)


def parse_class_weights(value: Any) -> Any:
    """``"balanced"``, or one number above 0 per class."""
    if not isinstance(value, list | tuple):
        if value is not None and value != "balanced":
            raise ValueError("neither balanced nor a list of numbers")
        return value
    weights = tuple(float(parse_number(weight)) for weight in value)
    if len(weights) < 2 or min(weights) <= 0:
        raise ValueError("each class needs a number above 0")
    return weights


def _share(value: Any) -> float:
    number = parse_number(value)
    if not isinstance(number, int | float) or not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not between 0 and 1")
    return float(number)


Number = Annotated[float, BeforeValidator(parse_number)]
Whole = Annotated[int, BeforeValidator(parse_whole)]
Flag = Annotated[bool, BeforeValidator(parse_flag)]
Text = Annotated[str, BeforeValidator(parse_text)]
ClassWeights = Annotated[
    Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(parse_class_weights)
]
Scheduled = Annotated[float | Points, BeforeValidator(parse_scheduled)]


def one_of(what: str, names: Sequence[str] | Callable[[], Sequence[str]]) -> AfterValidator:
    """Let one of the names or ``module:attribute`` pass.

    A function of names is called when a name is checked, and its names are listed in the error.
    """

    def check(name: str) -> str:
        known = names() if callable(names) else names
        if name not in known and not is_path(name):
            listed = f" There are {', '.join(known)}." if callable(names) else ""
            raise ValueError(f"no such {what}.{did_you_mean(nearest(name, known))}{listed}")
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """Base of all sections: frozen, and without room for unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=True,
        use_attribute_docstrings=True,
    )


def piecewise(value: float | tuple[tuple[float, float], ...]) -> float | PiecewiseLinear:
    """A recipe's number or points, as the core's schedules take it."""
    from conadv.schedules import PiecewiseLinear  # and torch: reading a recipe goes without

    return PiecewiseLinear(value) if isinstance(value, tuple) else value

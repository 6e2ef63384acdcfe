"""The section ``method`` of a recipe; what a schedule has to be told is asked of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError

from conadv._words import is_path
from conadv.schedules import SCHEDULES, Schedule, Setting, find_schedule
from conadv.trainer.recipe.data import View
from conadv.trainer.recipe.updates import choices
from conadv.trainer.recipe.values import (
    Flag,
    Number,
    Scheduled,
    Section,
    Text,
    Whole,
    piecewise,
)

S = TypeVar("S", bound=Section)
if TYPE_CHECKING:
    _Sam = str
else:
    _Sam = Literal[("none", *(thing.on for thing in choices("method.sam")))]


def owners(setting: str) -> list[str]:
    """Names of the schedules that have a setting."""
    return [name for name, cls in SCHEDULES.items() if setting in cls.settings]


def settings() -> dict[str, Setting]:
    """Every setting of a schedule that is a field of the section."""
    return {name: s for cls in SCHEDULES.values() for name, s in cls.settings.items()}


def _field(name: str, setting: Setting) -> tuple[Any, Any]:
    kinds: dict[type, Any] = {bool: Flag, int: Whole, float: Number, str: Text}
    kind = Literal[setting.choices] if setting.choices else kinds[type(setting.default)]
    text = f"{setting.meaning.removesuffix('.')} ({' and '.join(owners(name))} only)."
    return kind, Field(default=setting.default, ge=setting.low, le=setting.high, description=text)


def _with_settings(section: type[S]) -> type[S]:
    """The section with a field for each setting of each schedule."""
    fields: dict[str, Any] = {name: _field(name, s) for name, s in settings().items()}
    return create_model(section.__name__, __base__=section, __module__=__name__, **fields)


@_with_settings
class _Copies(Section):
    schedule: Text = Field(
        default="vanilla",
        json_schema_extra={
            "allowed": f"{', '.join(SCHEDULES)}. A class of one's own is named module:Class"
        },
    )
    """Where adversarial copies come from; vanilla has none."""
    share: Scheduled = 1.0
    """Share of the images that get a copy (fixed budget: of the batch that is copies, default
    0.25), or points [[progress, value], ...]."""
    weight: Scheduled | None = None
    """Weight of the copies' mean loss, or points [[progress, value], ...]; null counts every image
    the same."""
    options: dict[str, Any] = Field(default={})
    """Further keyword arguments of the schedule's constructor."""

    @field_validator("schedule")
    @classmethod
    def _there_is_one(cls, name: str) -> str:
        try:
            find_schedule(name)
        except ValueError:
            if is_path(name):
                raise
            raise PydanticCustomError("schedule", "no such schedule") from None
        return name

    @model_validator(mode="before")
    @classmethod
    def _default_share(cls, given: Any) -> Any:
        """The schedule's own, where none is given."""
        if not isinstance(given, dict) or "share" in given:
            return given
        try:
            kind = find_schedule(given.get("schedule", "vanilla"))
        except ValueError:
            return given  # which its own check refuses
        own = {name: given[name] for name in kind.settings if name in given}
        return {**given, "share": kind.default_share(**own)}

    @property
    def kind(self) -> type[Schedule]:
        """Class of the schedule."""
        return find_schedule(self.schedule)

    def make(self, rounds: int = 1) -> Schedule:
        """The schedule for steps of so many rounds; with one, what it counts are steps.

        Raises:
            ValueError: Settings that do not go together.
            TypeError: Options that the schedule does not have.
        """
        weight = None if self.weight is None else piecewise(self.weight)
        return self.kind.for_steps(rounds, piecewise(self.share), weight, **self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the schedule is made with beside share and weight."""
        fields = [name for name in self.kind.settings if name in type(self).model_fields]
        return {name: getattr(self, name) for name in fields} | self.options


class MethodSection(_Copies):
    """How adversarial copies come into training."""

    loss: Literal["mean", "sum"] = "mean"
    """How the losses of images and copies are put together: their mean, or the sum that the paper
    prints, in which the images' own loss counts as in ordinary training."""
    view: View = "none"
    """Train also on a second crop of every image through a branch of its own: plain, or under a
    policy (data.dataset=files; the published ConAdv+AA has autoaugment-v0)."""
    sam: _Sam = "none"
    """Take the gradient at perturbed weights (vanilla only): sam along this step's own gradient,
    async along the one of the step before."""
    rho: Number = Field(default=0.05, gt=0)
    """Length of the perturbation of the weights, over all of them together (method.sam)."""
    track_agreement: Flag = False
    """Log how well stale perturbations agree with fresh ones, at the cost of an attack per step."""
    label: Text | None = None
    """What a table calls the method; null derives it from the schedule and the update."""

"""What a study's YAML file may say. Every field says in one sentence what it is."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from conadv.lab.study.hypotheses.schema import Hypotheses
from conadv.trainer.recipe.values import Flag, Number, Section, Text, Whole
from conadv.trainer.recipe.yaml12 import one_line

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Parameter(Section):
    """A setting that is tuned, and where its values are looked for."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: Flag = True
    """Search on a logarithmic scale."""
    relative: Flag = False
    """The two are factors on the value that the recipe has at this batch."""
    methods: Literal["all", "adversarial"] | tuple[Text, ...] = "all"
    """Methods it is tuned for: all, those with copies of images (adversarial), or a list."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be above 0 on a logarithmic scale")
        return self


def _learning_rate() -> dict[str, Parameter]:
    return {"optimizer.lr": Parameter(low=1 / 8, high=8, relative=True)}


class Tuning(Section):
    """How the settings of a cell are chosen; the same number of trials for every cell."""

    trials: Whole = Field(default=8, ge=0)
    """Runs of each cell that settings are chosen by; 0 takes the recipe's settings."""
    validation: Number = Field(default=0.1, gt=0, lt=1)
    """Share of the training images that trials are judged by and not trained on."""
    seed: Whole = Field(default=1000, ge=0, lt=2**31)
    """Seed of every trial and of the search; not one of the seeds of the final runs."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How values are drawn: tree-structured Parzen estimator, at random, or on a logarithmic grid
    of one setting: middle and both ends of its range, then on beyond the best while that is the
    smallest or largest tried, then closer around it."""
    startup: Whole = Field(default=4, ge=1)
    """Finished trials before the estimator takes over from chance (tpe)."""
    first: tuple[dict[str, Number], ...] = ()
    """Points that are tried first, as setting: value (a factor where the parameter is relative);
    what a point leaves out is drawn."""
    space: dict[str, Parameter] = Field(default_factory=_learning_rate)
    """What is tuned, by the setting's dotted name."""
    settings: dict[str, Any] = Field(default={})
    """Further settings of the trials alone, such as a shorter training."""
    confirm_seeds: tuple[Whole, ...] = ()
    """Seeds on which the best trials are run once more: the settings of the best mean are chosen.
    Without any the best trial decides, on its one seed."""
    finalists: Whole = Field(default=2, ge=2)
    """How many of the best trials are confirmed (confirm_seeds)."""
    keep_checkpoints: Flag = False
    """Keep the checkpoints of finished trials."""


class Final(Section):
    """The runs that are reported."""

    seeds: tuple[Whole, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of each cell's runs with the tuned settings."""
    validation: Number = Field(default=0.0, ge=0, lt=1)
    """Share of the training images held out; 0 trains on all of them."""
    test: Flag = True
    """Look at the test images, once per run; false, for orientation: only at those held out."""
    settings: dict[str, Any] = Field(default={})
    """Further settings of the final runs alone."""
    keep_checkpoints: Flag = True
    """Keep the checkpoints of finished runs, which `conadv analyse` reads."""


class Method(Section):
    """One way of training."""

    settings: dict[str, Any] = Field(default={})
    """What it changes in the recipe, as dotted name: value."""
    batches: tuple[Whole, ...] | None = None
    """Batches it is run at; null: all of the study."""
    seeds: tuple[Whole, ...] | None = None
    """Those of final.seeds that it is run on; null: all."""
    tuned_as: Text | None = None
    """Take the settings tuned for this other method at the same batch, without trials."""
    space: dict[str, Parameter] = Field(default={})
    """Parameters tuned for it beside, or instead of, those of tuning.space."""


class Study(Section):
    """A grid of methods x batches x seeds on one data set and network."""

    name: Text = Field(pattern=NAME)
    """Name of the study."""
    description: Text = ""
    """The question it asks."""
    recipe: Text
    """Recipe that every run begins from: a name, or a path beside the study's file."""
    settings: dict[str, Any] = Field(default={})
    """Changes to the recipe for every run, as dotted name: value."""
    methods: dict[str, Method] = Field(min_length=1)
    """Ways of training, by name."""
    batches: dict[Whole, dict[str, Any]] = Field(min_length=1)
    """Images per weight update: a list, or a mapping to settings of each batch."""
    tuning: Tuning = Tuning()
    """How settings are chosen."""
    final: Final = Final()
    """The runs that are reported."""
    hypotheses: Hypotheses | None = None
    """What it decides, stated before the final runs; null: nothing, all of it is exploratory."""
    attempts: Whole = Field(default=3, ge=1)
    """How many workers a run may kill (by memory, a crash of the interpreter) before it counts as
    failed."""
    stale_after: Number = Field(default=120.0, ge=1)
    """Seconds without a sign of life after which a run's worker counts as dead."""

    @field_validator("batches", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return {size: {} for size in given}
        if isinstance(given, Mapping):
            return {size: settings or {} for size, settings in given.items()}
        return given

    @field_validator("methods", mode="before")
    @classmethod
    def _empty(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: {} if method is None else method for name, method in given.items()}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            *self._method_problems(),
            *self._tuning_problems(),
            *self._hypothesis_problems(),
        ]
        if problems:
            raise ValueError(" ".join(problems))
        return self

    def _method_problems(self) -> list[str]:
        found = []
        for name, method in self.methods.items():
            if not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
                found.append(f"methods.{name}: letters, digits, '-', '.' and '_' make a name.")
            for batch in method.batches or ():
                if batch not in self.batches:
                    found.append(f"methods.{name}.batches: {batch} is none of {[*self.batches]}.")
            strange = {*(method.seeds or ())} - {*self.final.seeds}
            if strange or method.seeds == ():
                found.append(f"methods.{name}.seeds: give some of {[*self.final.seeds]}.")
            other = method.tuned_as
            if other is not None and (other not in self.methods or other == name):
                found.append(f"methods.{name}.tuned_as={other}: name another of {[*self.methods]}.")
            elif other is not None and self.methods[other].tuned_as is not None:
                found.append(f"methods.{name}.tuned_as={other}: {other} has no trials of its own.")
            elif other is not None:
                missing = set(self.sizes_of(name)) - set(self.sizes_of(other))
                if missing:
                    found.append(f"methods.{name}: {other} is not run at {sorted(missing)}.")
        return found

    def _tuning_problems(self) -> list[str]:
        found = []
        if self.tuning.trials and self.tuning.seed in self.final.seeds:
            found.append(
                f"tuning.seed={self.tuning.seed} is one of final.seeds: what was chosen on a seed "
                "must not be reported on it. Give another."
            )
        if len(set(self.final.seeds)) < len(self.final.seeds):
            found.append("final.seeds: each only once.")
        if self.tuning.sampler == "grid" and 0 < self.tuning.trials < 4:
            found.append("tuning.trials: a grid that can extend itself takes 4 or more.")
        found += self._confirmation_problems()
        if not self.final.test and not self.final.validation:
            found.append(
                "final.test=false leaves nothing to judge the final runs by: give "
                "final.validation, a share of the training images above 0."
            )
        known = {*self.tuning.space}.union(*(m.space for m in self.methods.values()))
        for point in self.tuning.first:
            found += [f"tuning.first: {n} is not tuned ({known})." for n in point if n not in known]
            for name, value in point.items():
                for where in (self.tuning.space, *(m.space for m in self.methods.values())):
                    if name in where and not where[name].low <= value <= where[name].high:
                        found.append(f"tuning.first: {name}={value:g} is outside of its range.")
        for name, parameter in self.tuning.space.items():
            for method in parameter.methods if isinstance(parameter.methods, tuple) else ():
                if method not in self.methods:
                    found.append(f"tuning.space.{name}.methods: {method} is no method.")
        return found

    def _confirmation_problems(self) -> list[str]:
        tuning, found = self.tuning, []
        seeds = tuning.confirm_seeds
        if len({tuning.seed, *seeds}) < 1 + len(seeds):
            found.append(
                f"tuning.confirm_seeds={[*seeds]}: each only once, and not the trials' own "
                f"({tuning.seed})."
            )
        if tuning.trials and (both := {*seeds} & {*self.final.seeds}):
            found.append(
                f"tuning.confirm_seeds: {sorted(both)} are final.seeds too: what was chosen on a "
                "seed must not be reported on it. Give others."
            )
        if seeds and 0 < tuning.trials < tuning.finalists:
            found.append(
                f"tuning.finalists={tuning.finalists}: there are only {tuning.trials} trials."
            )
        return found

    def _hypothesis_problems(self) -> list[str]:
        """Hypotheses about runs that the study does not make."""
        if self.hypotheses is None:
            return []
        return [
            f"hypotheses.{name}: {method} is not run at batch {batch}."
            for name, hypothesis in self.hypotheses.named.items()
            for method, batch in hypothesis.contrast()
            if method not in self.methods or batch not in self.sizes_of(method)
        ]

    def sizes_of(self, method: str) -> tuple[int, ...]:
        """The batches that a method is run at."""
        given = self.methods[method].batches
        return tuple(self.batches) if given is None else given

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds of a method's final runs."""
        given = self.methods[method].seeds
        return self.final.seeds if given is None else given

    def seeds_of_all(self, methods: Iterable[str]) -> tuple[int, ...]:
        """The seeds that every one of some methods is run on."""
        common = set.intersection(*({*self.seeds_of(method)} for method in methods))
        return tuple(seed for seed in self.final.seeds if seed in common)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the command line takes them: ``dotted.name=value``."""
    return [f"{name}={one_line(value)}" for name, value in settings.items()]

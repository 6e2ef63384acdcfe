"""Expand a study into its cells and runs: which recipe, which overrides, in which order."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from conadv.errors import RecipeError, StudyError
from conadv.lab.study.schema import Parameter, Study, as_overrides
from conadv.trainer.input.random_images import images_of
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.recipe.load import resized
from conadv.trainer.recipe.recipe import flat


@dataclass(frozen=True)
class Range:
    """Where the values of one setting are looked for."""

    low: float
    high: float
    log: bool
    base: float = 1.0
    """What a value is multiplied with: 1, or the recipe's own where the range is relative."""


@dataclass(frozen=True)
class Cell:
    """One method at one batch."""

    method: str
    batch: int
    overrides: tuple[str, ...]
    """What makes the study's recipe the cell's."""
    space: Mapping[str, Range]
    """What is tuned; empty where nothing is."""
    tuned_as: str
    """Name of the cell whose trials decide; mostly its own."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-b{self.batch}"


@dataclass(frozen=True)
class Task:
    """One run: a trial of a cell, a good trial on another seed, or a final run."""

    cell: Cell
    kind: Literal["trial", "confirm", "final"]
    number: int
    """Number of the trial; the seed of the others."""
    rank: int = 0
    """Whose settings are confirmed: 1 for the best trial's, 2 for the next one's."""

    @property
    def name(self) -> str:
        """Name within the study: ``CELL/trial-003``, ``CELL/best-2-seed-1001``, ``CELL/seed-1``."""
        what = {
            "trial": f"trial-{self.number:03d}",
            "confirm": f"best-{self.rank}-seed-{self.number}",
            "final": f"seed-{self.number}",
        }
        return f"{self.cell.name}/{what[self.kind]}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study, in the order in which a single worker makes them."""

    study: Study
    recipe: str
    """What the runs' recipe is loaded by."""
    cells: tuple[Cell, ...]
    tasks: tuple[Task, ...]

    def trials(self, cell: str) -> list[Task]:
        """The trials of the cell of that name."""
        return [t for t in self.tasks if t.kind == "trial" and t.cell.name == cell]

    def confirmations(self, cell: str) -> list[Task]:
        """The runs in which that cell's best trials are repeated."""
        return [t for t in self.tasks if t.kind == "confirm" and t.cell.name == cell]

    def overrides(self, task: Task, values: Mapping[str, float]) -> list[str]:
        """All that a run changes in the study's recipe; the last of a name counts.

        Args:
            task: The run.
            values: Its tuned settings.
        """
        tuned = [f"{name}={value:.6g}" for name, value in values.items()]
        if task.kind != "final":
            tuning = self.study.tuning
            ends = [
                *as_overrides(tuning.settings),
                f"data.validation={tuning.validation:g}",
                "evaluation.test=false",
                f"seed={tuning.seed if task.kind == 'trial' else task.number}",
            ]
        else:
            final = self.study.final
            ends = [
                *as_overrides(final.settings),
                f"data.validation={final.validation:g}",
                f"evaluation.test={str(final.test).lower()}",
                f"seed={task.number}",
            ]
        return _last_of_each([*task.cell.overrides, *ends, *tuned, f"name={task.cell.name}"])

    def make_recipe(self, task: Task, values: Mapping[str, float] | None = None) -> Recipe:
        """The recipe of a run; without ``values`` that of the untuned settings."""
        return load_recipe(self.recipe, self.overrides(task, values or {}))

    def command(self, task: Task, values: Mapping[str, float], out: Path) -> str:
        """What remakes a run, as typed in a shell."""
        return shlex.join(
            ["conadv", "train", self.recipe, *self.overrides(task, values), "--out", str(out)]
        )


def make_plan(study: Study, folder: Path | None = None) -> Plan:
    """Work out every cell and run of a study, and check each recipe.

    Args:
        study: Any.
        folder: Where the study lives, in which a recipe that is no name is looked for.

    Raises:
        StudyError: A cell's recipe is impossible; all such are listed.
    """
    recipe = study.recipe
    if folder is not None and (folder / recipe).is_file():
        recipe = str(folder / recipe)
    problems: list[str] = []
    cells: list[Cell] = []
    for batch in study.batches:
        for name in study.methods:
            if batch not in study.sizes_of(name):
                continue
            try:
                cells.append(_cell(study, recipe, name, batch))
            except (RecipeError, StudyError) as error:
                problems.append(f"{name} at batch {batch}: {error}")
    cells = _with_labels(study, recipe, cells) if not problems else cells
    plan = Plan(study, recipe, tuple(cells), tuple(_tasks(study, cells)))
    for task in plan.tasks:
        # One of each kind: the others are alike.
        if task.number in (0, study.seeds_of(task.cell.method)[0]):
            try:
                made = plan.make_recipe(task)
                made.steps_per_epoch(images_of(made)[2])
            except RecipeError as error:
                problems.append(f"{task.name}: {error}")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        raise StudyError(f"study {study.name}:{listed}")
    return plan


def _cell(study: Study, recipe: str, name: str, batch: int) -> Cell:
    method = study.methods[name]
    given = [*as_overrides(study.settings), *as_overrides(study.batches[batch])]
    own = as_overrides(method.settings)
    sizes = [f"batch.global_batch={batch}"]
    if not any(text.startswith("batch.micro_batch=") for text in (*given, *own)):
        shape = resized(load_recipe(recipe, as_overrides(study.settings)), batch).batch
        sizes += [f"batch.{n}={getattr(shape, n)}" for n in ("micro_batch", "norm_group")]
    overrides = _last_of_each([*sizes, *given, *own])
    other = method.tuned_as
    space = {} if other else _space(study, name, load_recipe(recipe, overrides))
    return Cell(name, batch, tuple(overrides), space, f"{other or name}-b{batch}")


def _space(study: Study, method: str, made: Recipe) -> dict[str, Range]:
    """What is tuned for a method."""
    if not study.tuning.trials:
        return {}
    parameters = {**study.tuning.space, **study.methods[method].space}
    values = flat(made)
    space = {
        name: _range(name, parameter, values)
        for name, parameter in parameters.items()
        if _applies(parameter, method, made)
    }
    if study.tuning.sampler == "grid":
        if len(space) > 1 or not all(range_.log for range_ in space.values()):
            raise StudyError(
                f"tuning.sampler=grid tunes one setting on a logarithmic scale, here it has "
                f"{', '.join(space)}: give the others values in settings, or sampler=tpe."
            )
    return space


def _applies(parameter: Parameter, method: str, recipe: Recipe) -> bool:
    if parameter.methods == "all":
        return True
    if parameter.methods == "adversarial":
        return recipe.method.kind.makes_copies
    return method in parameter.methods


def _range(name: str, parameter: Parameter, values: Mapping[str, object]) -> Range:
    if name not in values:
        raise StudyError(f"tuning.space.{name}: a recipe has no such setting.")
    if not parameter.relative:
        return Range(parameter.low, parameter.high, parameter.log)
    base = values[name]
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise StudyError(
            f"tuning.space.{name} is relative, but the recipe has {base!r} there: give the "
            "setting a number, or the parameter relative=false."
        )
    return Range(parameter.low, parameter.high, parameter.log, float(base))


def _with_labels(study: Study, recipe: str, cells: Sequence[Cell]) -> list[Cell]:
    """Methods that a table would call by the same name get their own names."""
    made = {cell.name: load_recipe(recipe, cell.overrides).method_label for cell in cells}
    names = {(cell.method, made[cell.name]) for cell in cells}
    often = Counter(label for _, label in names)
    return [
        replace(cell, overrides=(*cell.overrides, f"method.label={cell.method}"))
        if often[made[cell.name]] > 1
        else cell
        for cell in cells
    ]


def _tasks(study: Study, cells: Sequence[Cell]) -> list[Task]:
    """List the runs, trials before confirmations before final runs of the cells of each group."""
    tasks: list[Task] = []
    tuning = study.tuning
    ranks = range(1, tuning.finalists + 1)
    for here in _groups(study, cells):
        searched = [cell for cell in here if cell.space]
        tasks += [Task(cell, "trial", n) for cell in searched for n in range(tuning.trials)]
        tasks += [
            Task(cell, "confirm", seed, rank)
            for cell in searched
            for rank in ranks
            for seed in tuning.confirm_seeds
        ]
        seeds = dict.fromkeys(seed for cell in here for seed in study.seeds_of(cell.method))
        tasks += [
            Task(cell, "final", seed)
            for seed in seeds
            for cell in here
            if seed in study.seeds_of(cell.method)
        ]
    return tasks


def _groups(study: Study, cells: Sequence[Cell]) -> list[list[Cell]]:
    """Put the cells that each hypothesis needs beyond those before it first, the rest by batch."""
    stated = study.hypotheses.named.values() if study.hypotheses else ()
    wanted = [{*hypothesis.contrast()} for hypothesis in stated]
    wanted += [{(method, batch) for method in study.methods} for batch in study.batches]
    groups, left = [], list(cells)
    for names in wanted:
        groups.append([cell for cell in left if (cell.method, cell.batch) in names])
        left = [cell for cell in left if cell not in groups[-1]]
    return groups


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Leave out those that a later one of the same name replaces."""
    kept: dict[str, str] = {}
    for text in overrides:
        name = text.partition("=")[0]
        kept.pop(name, None)
        kept[name] = text
    return list(kept.values())

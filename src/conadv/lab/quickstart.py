"""The quickstart: four short runs on real images, and what each gained and cost.

A small batch as the reference, then a large one three ways: ordinary training, sequential
adversarial training, and recycled. The settings are the recipes ``fashion-resnet8-*``; how they
were chosen is in docs/quickstart.md.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conadv.errors import Interrupted, NonFiniteError, RecipeError, RunFolderError
from conadv.lab.report import Run, read_run, write_report
from conadv.lab.report.findings import findings
from conadv.lab.report.study.cells import cells
from conadv.lab.report.tables import columns, rows
from conadv.lab.study.cost import compute_factor
from conadv.trainer.input.random_images import images_of
from conadv.trainer.probe.dry_run import dry_run
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.start import train

RUNS = {
    "small-batch": "fashion-resnet8-small-batch",
    "vanilla": "fashion-resnet8-vanilla",
    "sequential": "fashion-resnet8-sequential",
    "recycled": "fashion-resnet8-recycled",
}
"""Folder of each run and the recipe it follows, in the order in which they are made."""
PAGE = "report.html"
PLAN = "quickstart.json"
SHORTEST = 3
"""Fewest epochs to which a slow machine may cut the runs: below, nothing is learnt."""
_OVERHEAD = 1.3
"""Time over that of the steps alone: start-up, evaluations, test attacks, the page."""


@dataclass(frozen=True)
class Plan:
    """How long the runs are; kept in the folder, so that a quickstart called again agrees.

    Attributes:
        epochs: Passes over the training images, or None for what the recipes say.
        asked: What the recipes say.
        overrides: Recipe settings that the caller changed.
    """

    epochs: int | None
    asked: float | None
    overrides: tuple[str, ...]

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of every run."""
        changes = list(self.overrides)
        if self.epochs is not None and self.asked is not None:
            changes.append(f"train.epochs={self.epochs}")
        recipes = {}
        for folder, name in RUNS.items():
            own = load_recipe(name, self.overrides)
            warmup = own.lr_schedule.warmup_epochs
            if self.epochs is not None and self.asked is not None:
                shorter = f"lr_schedule.warmup_epochs={warmup * self.epochs / self.asked:.4g}"
                own = load_recipe(name, [*changes, shorter])
            recipes[folder] = own
        return recipes


def run(
    out: Path | str = Path("runs/quickstart"),
    *,
    console: Console | None = None,
    budget_minutes: float = 5.0,
    overrides: Sequence[str] = (),
    seconds_per_image: Callable[[Recipe], float] | None = None,
) -> Path:
    """Make the runs that are missing, show what they measured, and write the page.

    Called again after an interruption it goes on where it was; finished runs are kept.

    Args:
        out: Folder of the runs and of the page.
        console: Where everything is shown; None is standard output.
        budget_minutes: How long all of it may take. On a machine that would need more, all runs
            are cut to fewer epochs alike, at least three, and that is said.
        overrides: ``dotted.name=value`` for every recipe, for trying things out.
        seconds_per_image: Measures one forward and backward pass of one image; None tries out a
            step.

    Returns:
        The page.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM; calling again continues.
        RunFolderError: ``out`` cannot be used.
    """
    out = Path(out)
    console = console or Console()
    measure = seconds_per_image or _seconds_per_image
    began = time.perf_counter()
    plan = _plan(out, tuple(overrides), budget_minutes, measure, console)
    recipes = plan.recipes()
    for i, (folder, recipe) in enumerate(recipes.items(), 1):
        console.print(f"\n[bold]{i}/{len(recipes)}  {folder}[/bold]  {recipe.description}")
        _train(recipe, out / folder, out, console)
    page = write_report([out / folder for folder in recipes], out / PAGE, lead=_lead(plan))
    _show([read_run(out / folder) for folder in recipes], console)
    _next(out, page, console, time.perf_counter() - began)
    return page


def _seconds_per_image(recipe: Recipe) -> float:
    return dry_run(recipe, images=recipe.micro_batch).seconds_per_image


def fitting_epochs(
    recipes: Iterator[Recipe], images: int, seconds_per_image: float, budget: float
) -> int | None:
    """How many epochs fit into the budget, if the recipes ask for more.

    Args:
        recipes: Of all runs; only those with a number of epochs count.
        images: Training images of one epoch.
        seconds_per_image: One forward and backward pass of one image.
        budget: Seconds for everything.

    Returns:
        A number of epochs below what is asked, at least :data:`SHORTEST`; None if all of it fits.
    """
    asked = [(recipe.train.epochs, compute_factor(recipe)) for recipe in recipes]
    known = [(epochs, cost) for epochs, cost in asked if epochs is not None]
    if not known:
        return None
    per_epoch = _OVERHEAD * seconds_per_image * images * sum(cost for _, cost in known)
    longest = max(epochs for epochs, _ in known)
    if longest * per_epoch <= budget:
        return None
    fit = int(budget / per_epoch)
    return max(SHORTEST, fit) if longest > SHORTEST else None


def command_prefix() -> str:
    """What runs conadv in the user's shell: ``conadv`` if that is this environment's, else Python.

    ``make quickstart`` does not activate its environment, so a bare ``conadv`` would not be found.
    """
    script = shutil.which("conadv")
    if script and Path(script).resolve().parent == Path(sys.executable).parent.resolve():
        return "conadv"
    try:
        python = os.path.relpath(sys.executable)
    except ValueError:  # another drive
        python = sys.executable
    python = sys.executable if python.startswith("..") else python
    return f"{shlex.quote(python)} -m conadv"


def _plan(
    out: Path,
    overrides: tuple[str, ...],
    budget_minutes: float,
    measure: Callable[[Recipe], float],
    console: Console,
) -> Plan:
    """The plan in the folder, or a new one that fits the machine."""
    path = out / PLAN
    if path.exists():
        return _read_plan(path)
    recipes = list(Plan(None, None, overrides).recipes().values())
    asked = recipes[0].train.epochs
    epochs = None
    if asked is not None:
        console.print("Trying out how fast this machine is ...")
        _, _, images = images_of(recipes[0])
        epochs = fitting_epochs(iter(recipes), images, measure(recipes[0]), 60 * budget_minutes)
    if epochs is not None:
        console.print(
            f"Too slow for {asked:g} epochs in {budget_minutes:g} minutes: every run takes "
            f"{epochs} instead. Expect lower accuracies than docs/quickstart.md has."
        )
    plan = Plan(epochs, asked, overrides)
    try:
        out.mkdir(parents=True, exist_ok=True)
        values = {"epochs": plan.epochs, "asked": plan.asked, "overrides": list(overrides)}
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"cannot write into {out}: {error.strerror}. Give another folder with --out."
        ) from error
    return plan


def _read_plan(path: Path) -> Plan:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Plan(values["epochs"], values["asked"], tuple(values["overrides"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{path} is damaged. Remove {path.parent}, or give another folder with --out."
        ) from error


def _train(recipe: Recipe, folder: Path, out: Path, console: Console) -> None:
    try:
        train(recipe, folder, resume=True, console=console)
    except NonFiniteError as error:
        console.print(f"This run diverged, and the report will say so: {error}", markup=False)
    except Interrupted:
        raise Interrupted(
            f"Stopped; what is done is kept. To go on: {command_prefix()} quickstart --out "
            f"{shlex.quote(str(out))}"
        ) from None
    except RecipeError as error:
        raise RunFolderError(
            f"{folder} holds a run with other settings than this version's quickstart: {error} "
            f"Remove {out}, or give another folder with --out."
        ) from error


def _lead(plan: Plan) -> str:
    text = (
        "One small network, the same images, equal passes over them: a small batch as the "
        "reference, then a large batch with ordinary training and with adversarial copies of the "
        "images, made before each step (sequential) or from the backward pass of the step before "
        "(recycled)."
    )
    if plan.epochs is not None:
        text += f" Cut to {plan.epochs} epochs, because this machine is slower than planned for."
    return text


def _show(runs: list[Run], console: Console) -> None:
    """The table, and what it says in words."""
    everything = cells(runs)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns(everything)):
        table.add_column(column, justify="right" if number else "left")
    for row in rows(everything):
        table.add_row(*row.values)
    words = findings(everything)
    console.print()
    console.print(table)
    console.print(f"\n{words.headline}", style="bold", markup=False, highlight=False)
    for sentence in (*words.sentences, *words.caveats):
        console.print(f"- {sentence}", markup=False, highlight=False)


def _next(out: Path, page: Path, console: Console, seconds: float) -> None:
    conadv, folder = command_prefix(), shlex.quote(str(out))
    lines = [
        f"\nThe page with curves and pictures ({seconds / 60:.1f} minutes in all): "
        f"{page.resolve().as_uri()}",
        "\nNext:",
        f"  {conadv} evaluate {folder}/recycled     # stronger attacks, either branch",
        f"  {conadv} export {folder}/recycled       # the plain network, as safetensors",
        f"  {conadv} recipes show {RUNS['recycled']}    # every setting, explained",
        f"  {conadv} train {RUNS['recycled']} optimizer.lr=4 --out runs/mine    # your own",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

"""The quickstart: a small batch beside a large one, three seeds each, what was gained at what cost.

Ordinary training at both batches; at the large one also with adversarial copies, beside the images
or in the place of a quarter of them. The settings are the recipes ``quickstart-*``; how they were
chosen is in docs/quickstart.md.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conadv._words import duration
from conadv.errors import Interrupted, NonFiniteError, RecipeError, RunFolderError
from conadv.lab.report import Material, read_run
from conadv.lab.report.content import Content, content
from conadv.lab.report.page import write_content
from conadv.lab.report.tables import columns, rows
from conadv.lab.study.cost import work
from conadv.trainer.probe.dry_run import dry_run
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run.output import say
from conadv.trainer.start import train

RUNS = {
    "small-batch": "quickstart-small-batch",
    "vanilla": "quickstart-vanilla",
    "budget": "quickstart-budget",
    "recycled": "quickstart-recycled",
}
"""What is compared, and the recipe it follows, in the order in which runs are made."""
SEEDS = (0, 1, 2)
PAGE = "report.html"
LONG = 300.0
"""Seconds beyond which it is said beforehand that this takes longer here."""
_OVERHEAD = 1.3
"""Time over that of the steps alone: start-up, evaluations, test attacks, the page."""
_LEAD = (
    "One small network and 2,000 images: a small batch as the reference, then a large one with "
    "ordinary training and with adversarial copies of the images from the backward pass of the "
    "step before (recycled), beside the images or in the place of a quarter of them."
)


def recipes(overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipe of every run by its folder; all methods of one seed before the next seed."""
    return {
        f"{name}-{seed}": load_recipe(recipe, [*overrides, f"seed={seed}"])
        for seed in SEEDS
        for name, recipe in RUNS.items()
    }


def run(
    out: Path | str = Path("runs/quickstart"),
    *,
    console: Console | None = None,
    overrides: Sequence[str] = (),
    seconds_per_image: Callable[[Recipe], float] | None = None,
) -> Path:
    """Make the runs that are missing, show what they measured, and write the page.

    Called again after an interruption it goes on where it was; finished runs are kept.

    Args:
        out: Folder of the runs and of the page.
        console: Where everything is shown; None is standard output.
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
    began = time.perf_counter()
    wanted = recipes(overrides)
    missing = [recipe for folder, recipe in wanted.items() if not _ended(out / folder)]
    if missing:
        measured = (seconds_per_image or _seconds_per_image)(missing[0])
        expected = _OVERHEAD * measured * sum(map(work, missing))
        if expected > LONG:
            say(
                console,
                f"This machine, as busy as it is, takes about {duration(expected)}. Ctrl-C stops; "
                "the same command goes on.",
            )
    for number, (folder, recipe) in enumerate(wanted.items(), 1):
        name, _, seed = folder.rpartition("-")
        console.print(f"{number}/{len(wanted)}  {name}, seed {seed}", style="bold", highlight=False)
        _train(recipe, out / folder, out, console)
    found = content(Material(tuple(read_run(out / folder) for folder in wanted)), lead=_LEAD)
    page = write_content(found, out / PAGE)
    _show(found, console)
    _next(out, page, console, time.perf_counter() - began)
    return page


def _seconds_per_image(recipe: Recipe) -> float:
    return dry_run(recipe, images=recipe.micro_batch).seconds_per_image


def _ended(folder: Path) -> bool:
    return (folder / "result.json").is_file()


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


def _train(recipe: Recipe, folder: Path, out: Path, console: Console) -> None:
    shown = console if console.is_terminal else Console(quiet=True)
    try:
        train(recipe, folder, resume=True, console=shown)
    except NonFiniteError as error:
        console.print(f"This run diverged, and the report will say so: {error}", markup=False)
    except Interrupted:
        raise Interrupted(
            f"Stopped; what is done is kept. To go on:\n  {command_prefix()} quickstart --out "
            f"{shlex.quote(str(out))}"
        ) from None
    except RecipeError as error:
        raise RunFolderError(
            f"{folder} holds a run with other settings than this version's quickstart: {error} "
            f"Remove {out}, or give another folder with --out."
        ) from error


def _show(found: Content, console: Console) -> None:
    """The table, and what it says in words."""
    head, words = columns(found.cells), found.findings
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows(found.cells):
        table.add_row(*row.values)
    console.print()
    wide = console.options.update(max_width=10_000)
    if console.measure(table, options=wide).maximum <= console.width:
        console.print(table)
    else:  # one paragraph for each setting
        for row in rows(found.cells):
            console.print(f"{row.values[0]}, batch {row.values[1]}", style="bold", highlight=False)
            for title, value in zip(head[2:], row.values[2:], strict=True):
                console.print(f"  {title}: {value}", highlight=False)
    console.print(f"\n{words.headline}", style="bold", markup=False, highlight=False)
    for sentence in (*words.sentences, *words.caveats):
        console.print(f"- {sentence}", markup=False, highlight=False)


def _next(out: Path, page: Path, console: Console, seconds: float) -> None:
    conadv, folder = command_prefix(), shlex.quote(str(out))
    lines = [
        f"\nThe page with curves and pictures ({seconds / 60:.1f} minutes in all): "
        f"{page.resolve().as_uri()}",
        "\nNext: stronger attacks, the plain network as a file, every setting explained, and a run "
        "of your own:",
        f"  {conadv} evaluate {folder}/recycled-0",
        f"  {conadv} export {folder}/recycled-0",
        f"  {conadv} recipes show {RUNS['recycled']}",
        f"  {conadv} train {RUNS['recycled']} optimizer.lr=4 --out runs/mine",
    ]
    for line in lines:
        say(console, line)

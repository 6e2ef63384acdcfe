"""Analyse a run: open its folder, do what is missing, keep each result as soon as it is there."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conadv._files import write_beside
from conadv.errors import RunFolderError, doing
from conadv.lab.analysis.run.analyses import (
    ANALYSES,
    AnalysisSettings,
    Request,
    plain_values,
    used_settings,
)
from conadv.trainer.checkpoint.load_run import load_run

FILE = "analysis.json"
FORMAT = "conadv-analysis"
VERSION = 1


def analyse_run(
    run: Path | str,
    *,
    only: Sequence[str] | None = None,
    again: bool = False,
    checkpoint: str = "last",
    device: str | None = None,
    settings: AnalysisSettings | None = None,
    console: Console | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Analyse the weights of a run, and keep the outcome in ``analysis.json`` of its folder.

    Each analysis is written when it is done, so an interrupted call loses one at most. The next
    call skips what is there for the same step with the same settings.

    Args:
        run: The run folder.
        only: Names out of ``ANALYSES``; None does all.
        again: Also do what is there already.
        checkpoint: ``"last"``, ``"best"`` (on the validation split), or a file name in the run's
            checkpoints folder. Staleness looks at all that were kept.
        device: Such as ``"cuda:1"``; None takes the recipe's.
        settings: How much is measured.
        console: Where progress goes; None shows none.
        overrides: Changes of the recipe that leave the weights alone, such as ``data.root=WHERE``
            where the images have moved; see `load_run`.

    Returns:
        What the file holds, see docs/analysis.md.

    Raises:
        RunFolderError: The folder holds no run or an ``analysis.json`` of something else, or the
            model has no such branch.
        CheckpointError: The checkpoint cannot be read.
        DataError: The run's images cannot be had.
        ValueError: A name that is no analysis, or settings that are impossible.
    """
    names = _chosen(only)
    settings = settings or AnalysisSettings()
    saved = load_run(run, checkpoint=checkpoint, device=device, overrides=overrides)
    path = saved.folder.root / FILE
    kept = read_analysis(path)
    kept["run"] = saved.recipe.name
    console, name_of_run = console or Console(quiet=True), saved.recipe.name
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for name in names:
        wanted = {
            "checkpoint": checkpoint,
            "step": saved.step,
            "settings": plain_values(used_settings(name, settings, saved)),
        }
        before = kept["analyses"].get(name)
        same = before and all(before.get(k) == wanted[k] for k in ("step", "settings"))
        if same and not again:
            say(f"{name_of_run} {name}: done already")
            continue
        began = time.perf_counter()
        with (
            doing(f"analysing the {name} of {saved.folder.root}"),
            _bar(console, f"{name_of_run} {name}") as progress,
        ):
            result = ANALYSES[name].run(Request(saved, settings, progress))
        seconds = time.perf_counter() - began
        kept["analyses"][name] = {
            **wanted,
            "device": str(saved.device),
            "torch": torch.__version__,
            "seconds": round(seconds, 3),
            "result": plain_values(result),
        }
        write_beside(path, kept)
        say(f"{name_of_run} {name}: {seconds:.1f} s")
        if note := result.get("note"):
            say(f"note: {note}")
    return kept


def read_analysis(path: Path) -> dict[str, Any]:
    """An ``analysis.json``, or the beginnings of one where there is none.

    Raises:
        RunFolderError: The file is not one of ours, or of another version.
    """
    if not path.exists():
        return {"format": FORMAT, "version": VERSION, "run": None, "analyses": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise RunFolderError(
            f"{path} was not written by this version of conadv analyse. Move it away, and the "
            "analyses are done anew."
        )
    return found


def _chosen(only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or () if name not in ANALYSES]
    if unknown or (only is not None and not only):
        raise ValueError(
            f"analysis {', '.join(unknown) or 'none'}: there are {', '.join(ANALYSES)}."
        )
    return [name for name in ANALYSES if only is None or name in only]


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A live line while one analysis runs; the progress that it is given moves it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Elsewhere than on a terminal the bar would be one line without meaning.
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

"""The runs as the page lists and draws them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conadv.lab.report.charts.curves import label
from conadv.lab.report.charts.palette import Colour, MethodKey
from conadv.lab.report.runs import Run
from conadv.lab.report.settings import Facts, differing, facts
from conadv.lab.report.study.cells import Cell, method_key
from conadv.lab.report.text import percent

if TYPE_CHECKING:
    from conadv.lab.report.charts.pictures import Triple

_MOST_CURVES = 12
"""Number of runs above which only one of each setting is drawn."""


@dataclass(frozen=True)
class Strip:
    """The pictures of one run."""

    run: Run
    method: int
    caption: str
    images: tuple[Triple, ...]


@dataclass(frozen=True)
class RunLine:
    """One run of a setting: what it reached, and the command that makes it again."""

    run: Run
    accuracy: str
    robust: str
    trained: str
    command: str


@dataclass(frozen=True)
class SettingView:
    """One setting in the list at the end, with all its runs."""

    name: str
    label: str
    method: int
    status: str
    lines: tuple[RunLine, ...]
    settings: tuple[tuple[str, str], ...]
    facts: tuple[Facts, ...]
    recipe_text: str
    notes: tuple[str, ...]


def strips(runs: Sequence[Run], palette: Mapping[MethodKey, Colour]) -> list[Strip]:
    """Pictures of the adversarial methods, one run each; of ordinary training if that is all."""
    from conadv.lab.report.charts.pictures import strongest, triples

    order = list(palette)
    shown: dict[MethodKey, Strip] = {}
    for run in runs:
        if run.pictures is None or method_key(run) in shown:
            continue
        key, most = method_key(run), strongest(run.pictures)
        scale = f"; shown {127 / most:.0f} times as strong around mid-grey" if most else ""
        caption = f"The strongest change of a pixel is {most:.3g} of 255 grey levels{scale}."
        shown[key] = Strip(run, order.index(key), caption, tuple(triples(run.pictures)))
    adversarial = [strip for key, strip in shown.items() if key.family.copies]
    return adversarial or list(shown.values())


def drawn_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs whose curves are drawn: all, or the first finished one of every setting."""
    if len(runs) <= _MOST_CURVES:
        return list(runs)
    first: dict[tuple[str, str, MethodKey, int | None], Run] = {}
    for run in runs:
        setting = (run.dataset, run.model, method_key(run), run.batch)
        if run.train and (setting not in first or first[setting].status != "finished"):
            first[setting] = run
    return list(first.values())


def setting_views(
    everything: Sequence[Cell], palette: Mapping[MethodKey, Colour]
) -> list[SettingView]:
    """Every setting with its runs."""
    order = list(palette)
    different = differing([run for cell in everything for run in cell.runs])
    views, at = [], 0
    for cell in everything:
        own = different[at : at + len(cell.runs)]
        at += len(cell.runs)
        first = next((run for run in cell.runs if run.recipe_text), cell.runs[0])
        settings = own[cell.runs.index(first)]
        if len(cell.runs) > 1:
            settings = tuple((name, value) for name, value in settings if name != "seed")
        several = [run.status for run in cell.runs if run.status != "finished"]
        views.append(
            SettingView(
                name=first.name if len(cell.runs) == 1 else (first.cell or cell.name),
                label=label(first),
                method=order.index(cell.key),
                status=several[0] if several else "finished",
                lines=tuple(_line(run) for run in cell.runs),
                settings=settings,
                facts=tuple(facts(first)),
                recipe_text=first.recipe_text,
                notes=tuple(
                    note if len(cell.runs) == 1 else f"{run.name}: {note}"
                    for run in cell.runs
                    for note in run.notes
                ),
            )
        )
    return views


def _line(run: Run) -> RunLine:
    loss = run.number("train_loss")
    fitted = percent(run.number("train_accuracy"))
    return RunLine(
        run=run,
        accuracy=percent(run.number("test_accuracy"), 2),
        robust=percent(run.number("robust_accuracy")),
        trained=fitted if loss is None else f"{fitted}, loss {loss:.3f}",
        command=run.command or _command(run),
    )


def _command(run: Run) -> str:
    """What remakes a run: its resolved recipe, into a new folder."""
    if not run.recipe_text:
        return ""
    recipe, again = run.folder / "recipe.yaml", run.folder.with_name(f"{run.folder.name}-again")
    return shlex.join(["conadv", "train", str(recipe), "--out", str(again)])

"""Reading study folders, and finding runs wherever they are."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from conadv.errors import RunFolderError
from conadv.lab.report.imagenet import read_imagenet
from conadv.lab.report.runs import Run, finite, is_run, read_run

SCORES = "imagenet.json"
"""Where ``conadv evaluate --test-set`` leaves its scores in a run folder."""


@dataclass(frozen=True)
class StudyFacts:
    """What one study folder holds beside its runs.

    Attributes:
        folder: Where it was read from, as the caller wrote it.
        name: Of the study.
        description: What it is to find out.
        definition: ``study.yaml`` as it stands.
        tuned: ``tuned.json``: by cell what was tuned, every trial and the choice; or empty.
        expected: How many final runs it is to have; None where the file does not say.
        judged: The verdicts on its hypotheses, of ``summary.json``; empty where none were stated.
    """

    folder: Path
    name: str
    description: str = ""
    definition: str = ""
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expected: int | None = None
    judged: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Material:
    """Everything a report is made of."""

    runs: tuple[Run, ...]
    studies: tuple[StudyFacts, ...] = ()
    imagenet: tuple[Mapping[str, Any], ...] = ()
    """Scores on ImageNet's test sets, as ``conadv evaluate --test-set`` writes them."""


def gather(paths: Iterable[Path | str]) -> Material:
    """Read runs, studies, and the ones directly inside folders that are neither.

    Of a study the final runs are taken, not the trials, and also those that failed.

    Args:
        paths: Run folders, study folders, folders of them, or JSON files of scores on ImageNet's
            test sets.

    Returns:
        The runs in the order given, those of one folder by name, those of a study in its order,
        each once.

    Raises:
        RunFolderError: A path is missing, or neither is nor holds a run.
    """
    runs: dict[Path, Run] = {}
    studies: dict[Path, StudyFacts] = {}
    scores: dict[Path, Mapping[str, Any]] = {}
    for path in map(Path, paths):
        if path.is_file() and path.suffix == ".json":
            scores.setdefault(path.resolve(), read_imagenet(path))
            continue
        if not path.is_dir():
            raise RunFolderError(
                f"{path} does not exist or is not a folder. Give run folders or study folders."
            )
        found = False
        for folder in [path] if _is_either(path) else sorted(filter(_is_either, path.iterdir())):
            if is_study(folder):
                if folder.resolve() not in studies:
                    facts, members = read_study(folder)
                    studies[folder.resolve()] = facts
                    for run in members:
                        runs.setdefault(run.folder.resolve(), run)
                found = True
            else:
                runs.setdefault(folder.resolve(), read_run(folder))
                found = True
        if not found:
            raise RunFolderError(
                f"{path} neither is a run folder nor holds any. Give a folder that `conadv train` "
                "or `conadv study` wrote, or one that holds such folders."
            )
    for folder in runs:
        if (folder / SCORES).is_file():
            scores.setdefault(folder / SCORES, read_imagenet(folder / SCORES))
    if not runs and not studies:
        raise RunFolderError("scores alone make no report: give a run folder as well.")
    if not runs:
        names = ", ".join(str(facts.folder) for facts in studies.values())
        raise RunFolderError(
            f"{names}: no final run has ended yet. `conadv study {names} --status` says how far "
            "it is."
        )
    return Material(tuple(runs.values()), tuple(studies.values()), tuple(scores.values()))


def find_runs(paths: Iterable[Path | str]) -> list[Run]:
    """The runs of :func:`gather` alone."""
    return list(gather(paths).runs)


def is_study(folder: Path) -> bool:
    """Whether a folder was written by ``conadv study``."""
    return (folder / "study.yaml").is_file() and (folder / "summary.json").is_file()


def read_study(folder: Path) -> tuple[StudyFacts, list[Run]]:
    """Read one study folder: its facts and its final runs.

    Raises:
        RunFolderError: ``study.yaml`` or ``summary.json`` is missing or damaged.
    """
    if not is_study(folder):
        raise RunFolderError(
            f"{folder} is not a study folder: it lacks study.yaml or summary.json. Give a folder "
            "that `conadv study` wrote."
        )
    text = (folder / "study.yaml").read_text(encoding="utf-8", errors="replace")
    definition = _damaged(folder / "study.yaml", yaml.safe_load, text)
    summary = _damaged(folder / "summary.json", json.loads)
    tuned: Mapping[str, Any] = {}
    if (folder / "tuned.json").is_file():
        tuned = _damaged(folder / "tuned.json", json.loads).get("cells") or {}
    rows = [row for row in summary.get("runs") or () if isinstance(row, Mapping)]
    runs = _completed([_run(folder, row, tuned) for row in rows])
    facts = StudyFacts(
        folder,
        name=str(definition.get("name") or folder.name),
        description=str(definition.get("description") or ""),
        definition=text,
        tuned=tuned,
        expected=_expected(definition),
        judged=tuple(one for one in summary.get("hypotheses") or () if isinstance(one, Mapping)),
    )
    return facts, runs


def _run(folder: Path, row: Mapping[str, Any], tuned: Mapping[str, Any]) -> Run:
    """A final run by its row in ``summary.json``; its folder may be missing after a failure."""
    place = folder / str(row.get("folder") or f"runs/{row.get('cell')}/seed-{row.get('seed')}")
    run = read_run(place) if is_run(place) else Run(place)
    status = str(row.get("status") or "")
    if not run.result or status not in ("", "finished", run.status):
        method = row.get("label") or row.get("method")
        known = {"method": method, "global_batch": row.get("batch"), "seed": row.get("seed")}
        run = replace(
            run, result={**known, **run.result, "status": status if status else run.status}
        )
    if row.get("message"):
        run = replace(run, notes=(*run.notes, str(row["message"])))
    choice = tuned.get(str(row.get("cell")))
    choice = choice if isinstance(choice, Mapping) else {}
    if "tuned_as" in choice:  # settings of another method at the same batch
        other = str(choice["tuned_as"])
        choice = {**(tuned.get(other) or {}), "borrowed": other}
    return replace(
        run,
        cell=str(row.get("cell") or ""),
        command=str(row.get("command") or ""),
        tuned_accuracy=finite(choice.get("val_accuracy")),
        tuning=choice,
    )


def _completed(runs: list[Run]) -> list[Run]:
    """Give runs that left nothing behind what they share with others, so that they stand beside.

    The recipe is that of another seed of the cell; data and network are the whole study's.
    """
    whole = [run for run in runs if run.recipe]
    completed = []
    for run in runs:
        if not run.recipe:
            same = next((other for other in whole if other.cell == run.cell), None)
            any_other = same or next(iter(whole), None)
            if any_other is not None:
                known = {"dataset": any_other.dataset, "model": any_other.model}
                if same is not None:
                    known["schedule"] = same.schedule
                run = replace(
                    run,
                    result={**known, **run.result},
                    recipe={} if same is None else same.recipe,
                )
        completed.append(run)
    return completed


def _expected(definition: Mapping[str, Any]) -> int | None:
    try:
        batches = list(definition["batches"])
        seeds = definition["final"]["seeds"]
        return sum(
            len(method.get("batches") or batches) * len(method.get("seeds") or seeds)
            for method in (
                {} if given is None else given for given in definition["methods"].values()
            )
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _is_either(folder: Path) -> bool:
    return folder.is_dir() and (is_run(folder) or is_study(folder))


def _damaged(path: Path, parse: Any, text: str | None = None) -> Mapping[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8") if text is None else text)
    except (ValueError, RecursionError, yaml.YAMLError, OSError):
        value = None
    if not isinstance(value, Mapping):
        raise RunFolderError(
            f"{path} is damaged. `conadv study {path.parent}` writes its tables anew when it goes "
            "on; runs can be reported on by giving their own folders."
        )
    return value

"""Reading run folders through their files alone, and putting up with whatever is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from conadv.errors import RunFolderError

if TYPE_CHECKING:
    from conadv.lab.report.charts.pictures import Pictures

_MARKS = ("recipe.yaml", "result.json", "metrics.jsonl")


@dataclass(frozen=True)
class Run:
    """What one run folder holds. Every piece but the folder itself may be missing.

    Attributes:
        folder: Where it was read from, as the caller wrote it.
        result: ``result.json``, or empty while the run has not ended.
        recipe: ``recipe.yaml``, nested, or empty.
        recipe_text: The same file as it stands, comments included.
        environment: ``environment.json``, or empty.
        train: Lines of ``metrics.jsonl`` about training steps, in order.
        evaluations: Lines of ``metrics.jsonl`` about evaluations, in order.
        timing: Lines of ``timing.jsonl``.
        pictures: Clean images, perturbations and adversarial copies, or None.
        analyses: ``analysis.json`` by the name of the analysis, or empty.
        notes: What could not be read, one sentence each.
        cell: In a study: method and batch, such as ``recycled-b1000``.
        command: In a study: the command that makes this run, without a recipe file.
        tuned_accuracy: In a study: validation accuracy of the trial that chose its settings.
        tuning: In a study: its cell's entry of ``tuned.json``; ``borrowed`` names the cell that
            its settings are taken from, where that is another one.
    """

    folder: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[Mapping[str, Any], ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    timing: tuple[Mapping[str, Any], ...] = ()
    pictures: Pictures | None = None
    analyses: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cell: str = ""
    command: str = ""
    tuned_accuracy: float | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder: unique within a set of runs, unlike the recipe's name."""
        if self.cell:
            return f"{self.cell}/{self.folder.name}"
        return self.folder.name or str(self.folder.resolve().name)

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, ``diverged``, or ``unfinished`` without a result."""
        return str(self.result.get("status") or ("finished" if self.result else "unfinished"))

    @property
    def schedule(self) -> str:
        """When input gradients are taken; ``vanilla`` for none."""
        return str(self.result.get("schedule") or self.setting("method.schedule") or "unknown")

    @property
    def method(self) -> str:
        """What a table calls the method."""
        return str(self.result.get("method") or self.setting("method.label") or self.schedule)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.result.get("dataset") or self.setting("data.dataset") or "unknown data")

    @property
    def model(self) -> str:
        """Name of the network."""
        return str(self.result.get("model") or self.setting("model.name") or "unknown model")

    @property
    def batch(self) -> int | None:
        """Images per weight update."""
        value = self.number("global_batch")
        if value is None:
            value = finite(self.setting("batch.global_batch"))
        return None if value is None else int(value)

    @property
    def on_cpu(self) -> bool:
        """Whether it is known to have been trained on a CPU."""
        hardware = self.environment.get("hardware")
        device = hardware.get("device") if isinstance(hardware, Mapping) else None
        return "cpu" in (device, self.setting("hardware.device"))

    def number(self, key: str) -> float | None:
        """A number of ``result.json``; None if it is missing or not finite."""
        return finite(self.result.get(key))

    def setting(self, dotted: str) -> Any:
        """A value of the recipe by its dotted name; None if there is none."""
        value: Any = self.recipe
        for key in dotted.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value


def read_run(folder: Path | str) -> Run:
    """Read one run folder.

    Raises:
        RunFolderError: The folder holds none of ``recipe.yaml``, ``result.json``,
            ``metrics.jsonl``. A damaged file in it is not an error: it becomes a note.
    """
    folder = Path(folder)
    if not any((folder / mark).is_file() for mark in _MARKS):
        raise RunFolderError(
            f"{folder} is not a run folder: it has none of {', '.join(_MARKS)}. "
            "Give a folder that `conadv train` wrote, or one that holds such folders."
        )
    notes: list[str] = []
    recipe_text = _text(folder / "recipe.yaml", notes)
    metrics = _lines(folder / "metrics.jsonl", notes)
    return Run(
        folder=folder,
        result=_mapping(folder / "result.json", json.loads, notes),
        recipe=_mapping(folder / "recipe.yaml", yaml.safe_load, notes),
        recipe_text=recipe_text,
        environment=_mapping(folder / "environment.json", json.loads, notes),
        train=tuple(line for line in metrics if line.get("kind") == "train"),
        evaluations=tuple(line for line in metrics if line.get("kind") == "eval"),
        timing=_lines(folder / "timing.jsonl", notes),
        pictures=_pictures(folder / "pictures.npz", notes),
        analyses=_analyses(folder / "analysis.json", notes),
        notes=tuple(notes),
    )


def is_run(folder: Path) -> bool:
    """Whether a folder has a file that only runs have."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror}.")
    return ""


def _mapping(path: Path, parse: Any, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        if path.suffix != ".yaml":  # the text of the recipe has noted it already
            notes.append(f"{path.name} is missing.")
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError, yaml.YAMLError, OSError):
        value = None
    if isinstance(value, Mapping):
        return value
    notes.append(f"{path.name} is damaged and was left out.")
    return {}


def _lines(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return ()
    lines = []
    damaged = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, Mapping):
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{damaged} damaged line(s) of {path.name} were left out.")
    return tuple(lines)


def _analyses(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """The result of each analysis by its name."""
    if not path.is_file():
        return {}
    entries = _mapping(path, json.loads, notes).get("analyses")
    if not isinstance(entries, Mapping):
        return {}
    return {
        name: entry["result"]
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("result"), Mapping)
    }


def _pictures(path: Path, notes: list[str]) -> Pictures | None:
    if not path.is_file():
        return None
    from conadv.lab.report.charts.pictures import read_pictures

    try:
        return read_pictures(path)
    except ValueError as error:
        notes.append(f"{path.name} was left out: {error}.")
        return None

"""What became of each run of a study, one small file each."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from conadv._files import write_json
from conadv.errors import StudyError

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. Accuracies are fractions in [0, 1]; None where not measured."""

    task: str
    kind: str
    method: str
    batch: int
    number: int
    """Number of the trial; the seed of a final run."""
    status: Status
    """``finished``; ``diverged`` (the loss was not finite); ``failed`` (anything else)."""
    message: str | None
    """Why it did not finish."""
    folder: str
    """The run folder, from the study's."""
    command: str
    """What remakes the run."""
    values: Mapping[str, float]
    """The tuned settings."""
    seconds: float
    """That the worker spent in the run, all attempts but killed ones."""
    worker: str
    result: Mapping[str, Any]
    """``result.json``, or empty."""

    def write(self, path: Path) -> None:
        """Write the JSON file; it appears whole."""
        write_json(path, dataclasses.asdict(self))


def outcome_path(tasks: Path, task: str) -> Path:
    """Where the outcome of a task is."""
    return tasks / task / "outcome.json"


def read_outcome(tasks: Path, task: str) -> Outcome | None:
    """The outcome of a task, or None while it has none.

    Raises:
        StudyError: The file is damaged.
    """
    path = outcome_path(tasks, task)
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StudyError(
            f"{path} is damaged or of another version: {error}. Remove it, and the run is looked "
            "at again."
        ) from error


def read_outcomes(tasks: Path, names: Iterable[str]) -> dict[str, Outcome]:
    """The outcomes that are there, by task; raises as `read_outcome` does."""
    found = ((name, read_outcome(tasks, name)) for name in names)
    return {name: outcome for name, outcome in found if outcome is not None}

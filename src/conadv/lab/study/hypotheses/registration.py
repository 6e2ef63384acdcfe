"""``registered.json``: what was to be decided, and on which seeds, before the first final run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from conadv._files import write_json
from conadv.errors import StudyError
from conadv.lab.study.files import StudyFolder
from conadv.lab.study.schema import Study


@dataclass(frozen=True)
class Registration:
    """A study as it stood when its first final run began."""

    sha256: str
    """Checksum of ``study.yaml``."""
    time: str
    """UTC, ISO 8601."""
    seeds: tuple[int, ...]
    methods: Mapping[str, tuple[int, ...]]
    """The batches of each."""
    hypotheses: Mapping[str, Mapping[str, Any]]
    """Hypotheses by name; empty where none were stated."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the file, or None before the first final run.

        Raises:
            StudyError: It is damaged.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StudyError(
                f"{path} is damaged: {error}. Without it all of the study is exploratory: remove "
                "it to go on so."
            ) from error

    def objection(self, study: Study, name: str) -> str | None:
        """Why a hypothesis of the study as it is now is exploratory; None: it is not."""
        assert study.hypotheses is not None
        hypothesis = study.hypotheses.named[name]
        if self.hypotheses.get(name) != hypothesis.model_dump(mode="json"):
            return "stated after the first final run"
        if any(b not in self.methods.get(m, ()) for m, b in hypothesis.contrast()):
            return "its runs were added after the first final run"
        if {*self.seeds} - {*study.final.seeds}:
            return "seeds were taken away after the first final run"
        return None


def register(folder: StudyFolder, study: Study) -> None:
    """Write the study down, unless an earlier final run has."""
    if folder.registered.exists():
        return
    named = study.hypotheses.named if study.hypotheses else {}
    registration = Registration(
        sha256=hashlib.sha256(folder.study.read_bytes()).hexdigest(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seeds=study.final.seeds,
        methods={name: study.sizes_of(name) for name in study.methods},
        hypotheses={name: one.model_dump(mode="json") for name, one in named.items()},
    )
    write_json(folder.registered, asdict(registration))

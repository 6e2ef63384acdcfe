"""The run folder: the one contract between the trainer and everything that reads a run."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from conadv._files import (
    is_partial,
    remove_partial,
    write_json,
    write_text,
)
from conadv.errors import RunFolderError


class RunFolder:
    """Names and guards the files of one run.

    Args:
        root: The folder of the run. Nothing is touched until :meth:`create` or :meth:`reopen`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.recipe = self.root / "recipe.yaml"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.timing = self.root / "timing.jsonl"
        self.result = self.root / "result.json"
        self.pictures = self.root / "pictures.npz"
        self.checkpoints = self.root / "checkpoints"
        self.events = self.root / "events"

    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.recipe.exists() or self.metrics.exists() or self.checkpoints.exists()

    def require_free(self) -> None:
        """Check that a new run may begin here: the folder is absent or empty.

        What :meth:`create` leaves when it is killed holds no step, and is cleared away.

        Raises:
            RunFolderError: The folder holds a run, or files that are not a run.
        """
        if self._half_made():
            remove_partial(self.root)
            self.environment.unlink(missing_ok=True)
            self.checkpoints.rmdir()
        if self.holds_run():
            raise RunFolderError(
                f"{self.root} already holds a run. To continue it: {self.resume_command()}. "
                "To start another one, give a new folder with --out."
            )
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise RunFolderError(
                f"{self.root} exists and is not an empty folder, and it is not a run either. "
                "Give a new folder with --out."
            )

    def _half_made(self) -> bool:
        """Whether :meth:`create`, which writes the recipe last, began here and did not end."""
        if self.recipe.exists() or not self.checkpoints.is_dir() or any(self.checkpoints.iterdir()):
            return False
        made = (self.checkpoints.name, self.environment.name)
        return all(path.name in made or is_partial(path) for path in self.root.iterdir())

    def create(self, recipe_text: str, environment: dict[str, Any]) -> None:
        """Start a new run.

        Raises:
            RunFolderError: See :meth:`require_free`; or the folder cannot be written.
        """
        self.require_free()
        try:
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot create the run folder {self.root}: {error.strerror}. "
                "Give a folder you can write to with --out."
            ) from error
        write_json(self.environment, environment)
        write_text(self.recipe, recipe_text)

    def reopen(self, environment: dict[str, Any]) -> None:
        """Continue a run: note where it continues, and clear away half-written files."""
        self.require_run()
        self.checkpoints.mkdir(exist_ok=True)
        remove_partial(self.root)
        remove_partial(self.checkpoints)
        known = json.loads(self.environment.read_text()) if self.environment.exists() else {}
        known.setdefault("resumed", []).append(environment)
        write_json(self.environment, known)

    def require_run(self) -> None:
        """Check that the folder holds a run that can be read.

        Raises:
            RunFolderError: There is no ``recipe.yaml`` in it.
        """
        if not self.recipe.exists():
            raise RunFolderError(
                f"{self.root} is not a run folder: it has no {self.recipe.name}. "
                "Give the folder that `conadv train` wrote."
            )

    def resume_command(self) -> str:
        """What a user types to continue this run."""
        return f"conadv train {shlex.quote(str(self.root))} --resume"


class NoLines:
    """What ranks other than the first write: nothing."""

    def append(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class JsonLines:
    """An append-only file of one JSON object per line, each handed to the system at once.

    Lines are cheap and survive a killed process; :meth:`sync` makes them survive a power cut, and
    is called before each checkpoint so that the file is never behind the checkpoint.

    Args:
        path: The file to append to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; calling it twice does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, leaving out a last line that a kill cut short."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def truncate_after(path: Path, step: int) -> None:
    """Drop the lines of later steps, so that a resumed run writes them once and only once.

    Args:
        path: A file of JSON lines, each with a ``step``; a missing file is left missing.
        step: The last step to keep.
    """
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(kept))

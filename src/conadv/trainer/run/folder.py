"""The run folder: the one contract between the trainer and everything that reads a run."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from conadv._files import (
    is_partial,
    remove_partial,
    write_json,
    write_text,
)
from conadv.errors import RunFolderError
from conadv.trainer.run.lock.run_lock import LOCK, RunLock


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
        self.lock = RunLock(self.root)

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
                f"{self.root} already holds a run. To start another one, give a new folder with "
                f"--out. To continue it:\n  {self.resume_command()}"
            )
        if self.root.exists() and (not self.root.is_dir() or self._names() - {LOCK}):
            raise RunFolderError(
                f"{self.root} exists and is not an empty folder, and it is not a run either. "
                "Give a new folder with --out."
            )

    def _half_made(self) -> bool:
        """Whether :meth:`create`, which writes the recipe last, began here and did not end."""
        if self.recipe.exists() or not self.checkpoints.is_dir() or any(self.checkpoints.iterdir()):
            return False
        made = {LOCK, self.checkpoints.name, self.environment.name}
        return all(path.name in made or is_partial(path) for path in self.root.iterdir())

    def _names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}

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
        """What a user types to continue this run on as many processes as it last had."""
        command = f"conadv train {shlex.quote(str(self.root))} --resume"
        machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        if machines > 1:
            each = os.environ.get("LOCAL_WORLD_SIZE", "1")
            return (
                f"torchrun --nnodes {machines} --nproc-per-node {each} --rdzv-backend c10d "
                f"--rdzv-endpoint HOST:PORT -m {command}"
            )
        processes = self._processes()
        return command + (f" --devices {processes}" if processes > 1 else "")

    def _processes(self) -> int:
        """Number of processes on which the run was begun or last continued."""
        try:
            known = json.loads(self.environment.read_text(encoding="utf-8"))
            last = [known, *known.get("resumed", [])][-1]
            return int(last["hardware"]["processes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 1

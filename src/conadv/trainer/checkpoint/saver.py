"""When a run's checkpoints are written, and what happens when one cannot be."""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed import World
from conadv.trainer.recipe.sections import CheckpointSection

SHOWN = 20
"""How many failures are kept for the run's result."""


@dataclass(frozen=True)
class _Saved:
    """What is on the disk, or on its way there."""

    step: int = 0
    best_accuracy: float = -1.0


class Saving:
    """The checkpoints of a run in progress, written beside training.

    A disk that is full for a while must not cost a run that is in good health: a write that fails
    is told, counts as not made, and is due again. Every rank goes through the same calls; which
    evaluation is the best one, and whether all have written, they find out together.

    Args:
        settings: How often, and how many stay.
        folder: Where; an existing folder.
        world: This process among those of the run.
        state: Copies this rank's part of a checkpoint.
        say: Takes a warning for the user.
    """

    def __init__(
        self,
        settings: CheckpointSection,
        folder: Path,
        world: World,
        state: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        attempt = world.first(secrets.token_hex(8))
        self.store = CheckpointStore(folder, settings.keep, world, attempt)
        self._settings, self._world = settings, world
        self._state, self._say = state, say
        self._writer = BackgroundWriter()
        self._saved = self._before = _Saved()
        self._tried = 0
        self._time = time.monotonic()
        self._problem: str | None = None
        self.warnings: list[str] = []
        """What failed on any rank, as far as it is known."""

    @property
    def best_accuracy(self) -> float:
        """Accuracy of the checkpoint that is called the best; -1 before there is one."""
        return self._saved.best_accuracy

    def begin(self, step: int, best_accuracy: float = -1.0) -> None:
        """Count from here: the run starts, or goes on from the checkpoint of ``step``."""
        self._saved = _Saved(step, best_accuracy)
        self._tried, self._time = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint of ``step`` is to be written."""
        settings = self._settings
        steps = step - max(self._saved.step, self._tried)
        minutes = (time.monotonic() - self._time) / 60
        return (settings.every_steps is not None and steps >= settings.every_steps) or (
            settings.every_minutes is not None and minutes >= settings.every_minutes
        )

    def start(self, step: int) -> None:
        """Start writing one; :meth:`look` sees to what goes wrong."""
        if self._saved.step != step:
            self.hear(wait=True)
            self._start(_Saved(step, self._saved.best_accuracy))

    def offer(self, step: int, accuracy: float) -> None:
        """Start writing one if no evaluation has been better."""
        # Rank 0's word: after a failed write ranks may remember another best one.
        if self._world.first(accuracy > self._saved.best_accuracy):
            self.hear(wait=True)
            self._start(_Saved(step, accuracy), best=True)

    def look(self, *, wait: bool = False) -> None:
        """See to a write that has ended, or wait for its end."""
        try:
            self._writer.finished(wait=wait)
        except CheckpointError as error:
            self._give_up()
            self._problem = str(error)
            if self._world.main:
                self._tell(self._problem)

    @property
    def untold(self) -> bool:
        """Whether a write has failed that rank 0 does not know of."""
        return self._problem is not None and not self._world.main

    def hear(self, *, wait: bool = False) -> None:
        """See to the last write on all ranks; they have to ask together.

        One that failed on any rank counts as not made on all of them, and rank 0 tells of it.

        Args:
            wait: Until it has ended everywhere.
        """
        self.look(wait=wait)
        problems = self._world.gather(self._problem)
        if any(problems) and self._problem is None:
            self._give_up()
        if self._world.main and (wait or any(problems)):
            self.store.name_best(failed=any(problems))
        self._problem = None
        for rank, problem in enumerate(problems):
            if self._world.main and rank and problem:
                self._tell(f"rank {rank}: {problem}")

    def _give_up(self) -> None:
        self._tried = max(self._tried, self._saved.step)
        self._saved = self._before  # the next that is as good gets its chance

    def _tell(self, problem: str) -> None:
        self._say(f"warning: {problem} Training goes on.")
        if len(self.warnings) < SHOWN:
            self.warnings.append(problem)

    def ensure_saved(self, step: int) -> None:
        """Wait until the checkpoint of ``step`` is there, on every rank.

        Raises:
            CheckpointError: It could not be written.
        """
        self.hear(wait=True)
        # A write that failed on one rank: all of them try again.
        if any(self._world.gather(self._saved.step != step or step == 0)):
            self._write_now(step)

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.close()

    def _start(self, saved: _Saved, *, best: bool = False) -> None:
        self._before, self._saved = self._saved, saved
        self._time = time.monotonic()
        state = self._state()
        self._writer.start(lambda: self.store.save(state, saved.step, best=best))

    def _write_now(self, step: int) -> None:
        problem: CheckpointError | None = None
        try:
            self.store.save(self._state(), step)
        except CheckpointError as error:
            problem = error
        for found in self._world.gather(problem):
            if found is not None:
                raise found
        self._saved = _Saved(step, self._saved.best_accuracy)


def snapshot(value: Any) -> Any:
    """A copy in the CPU's memory of everything in nested dicts, lists and tuples of tensors."""
    if isinstance(value, Tensor):
        copy = torch.empty_like(value, device="cpu")
        return copy.copy_(value.detach())
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


class BackgroundWriter:
    """One write at a time in a thread of its own; what went wrong is told at the next question."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Any] | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Begin a write. Waits for the one before it, whose failure is dropped: ask first."""
        if self._running is not None:
            self._running.exception()
        self._running = self._pool.submit(write)

    def finished(self, *, wait: bool = False) -> bool:
        """Whether a write has ended since it was last asked.

        Args:
            wait: Wait for the one that is running.

        Raises:
            CheckpointError: It failed.
        """
        running = self._running
        if running is None or not (wait or running.done()):
            return False
        self._running = None
        error = running.exception()
        if error is None:
            return True
        if isinstance(error, CheckpointError):
            raise error
        raise CheckpointError(f"the checkpoint could not be written: {error}") from error

    def close(self) -> None:
        """Wait for what is being written."""
        self._pool.shutdown(wait=True)

"""Writing checkpoints beside training: a copy is taken at once, the disk is not waited for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from conadv.errors import CheckpointError


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

"""Loggers: the numbers and pictures of a run, for people who watch it. None of them stops a run."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from conadv._files import in_utf8
from conadv._words import import_named, is_path
from conadv.errors import install_command

PATIENCE = 30.0
"""Seconds that a run which has ended waits for a logger."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told when it is opened."""

    name: str
    folder: Path
    """The run folder, by a path in UTF-8; a logger may keep files of its own in it."""
    step: int
    """The step that the run continues from; what an earlier process sent of later ones is void."""
    settings: Mapping[str, Any]
    """The recipe's values by dotted name, in plain types."""


class Logger(Protocol):
    """Receiver of numbers and pictures: all that a logger of one's own has to have.

    What makes one is called with a `LoggedRun` and the recipe's options for it. It lives in a
    thread of its own, so it may be slow, and is given up at its first error.
    """

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take numbers: ``train`` of a step, ``eval`` of an evaluation, ``result`` of the end."""

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Take a few images before and after the attack, uint8 (N, H, W, C)."""

    def close(self) -> None:
        """Send what is left."""


class Background:
    """A logger that is opened and fed by a thread, until it is closed or has failed once.

    Args:
        name: Of the logger, for messages.
        open_: Makes the logger.
        say: Told once, by the caller's thread, why nothing more is sent.
        patience: Seconds that `close` waits for what is still to be sent.
    """

    def __init__(
        self,
        name: str,
        open_: Callable[[], Logger],
        say: Callable[[str], None],
        patience: float = PATIENCE,
    ) -> None:
        self._name = name
        self._say = say
        self._patience = patience
        self._failure: str | None = None
        self._given_up = False
        self._waiting: SimpleQueue[Callable[[Logger], None] | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._send, args=(open_,), name=f"conadv-{name}", daemon=True
        )
        self._thread.start()

    def scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among ``values``; None and text are left out."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        self._put(lambda logger: logger.scalars(kind, step, numbers))

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Send pictures."""
        self._put(lambda logger: logger.pictures(step, clean, adversarial))

    def close(self) -> None:
        """Wait until everything is sent, but not for ever."""
        self._put(lambda logger: logger.close())
        self._waiting.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._failure = f"it has not answered for {self._patience:g} s"
        self._tell()

    def _put(self, message: Callable[[Logger], None]) -> None:
        self._tell()
        if not self._given_up:
            self._waiting.put(message)

    def _tell(self) -> None:
        if self._failure is not None and not self._given_up:
            self._given_up = True
            self._say(
                f"warning: no more is sent to {self._name} ({self._failure}). Training does not "
                "depend on it; metrics.jsonl and result.json have the same numbers."
            )

    def _send(self, open_: Callable[[], Logger]) -> None:
        try:
            logger = open_()
            while (message := self._waiting.get()) is not None:
                message(logger)
        except BaseException as error:  # whatever a service, its thread or its library meets
            self._failure = _reason(self._name, error)


def _reason(name: str, error: BaseException) -> str:
    missing = error.__cause__
    if isinstance(missing, ModuleNotFoundError) and not is_path(name):
        extra = "train" if name == "tensorboard" else name
        return f"{missing.name} is not installed; type {install_command(extra)}"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Loggers:
    """Several loggers, or none, as one.

    Args:
        loggers: They are closed in this order.
        held: What they need as long as they are open.
    """

    def __init__(self, loggers: Sequence[Background] = (), held: ExitStack | None = None) -> None:
        self._loggers = loggers
        self._held = held or ExitStack()

    def scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among ``values``."""
        for logger in self._loggers:
            logger.scalars(kind, step, values)

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Send pictures."""
        for logger in self._loggers:
            logger.pictures(step, clean, adversarial)

    def close(self) -> None:
        """Close them all."""
        for logger in self._loggers:
            logger.close()
        self._held.close()


def open_loggers(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    run: LoggedRun,
    say: Callable[[str], None],
) -> Loggers:
    """Open loggers in the background; what goes wrong with one is told once.

    Args:
        names: Files of this folder, or ``module:attribute`` of what makes a `Logger`.
        options: Keyword arguments of each, by name.
        run: What they are told of the run.
        say: Told of failures.
    """
    held = ExitStack()

    def opener(name: str) -> Callable[[], Logger]:
        path = name if is_path(name) else f"{__package__}.{name}:open_logger"

        def open_() -> Logger:
            folder = held.enter_context(in_utf8(run.folder))
            make: Callable[..., Logger] = import_named(path)
            return make(replace(run, folder=folder), **options.get(name, {}))

        return open_

    return Loggers([Background(name, opener(name), say) for name in names], held)

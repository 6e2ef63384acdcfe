"""TensorBoard: the same numbers as ``metrics.jsonl``, for people who watch curves grow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Events(Protocol):
    """Somewhere to send scalars."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers among ``values`` under ``kind/name``."""

    def close(self) -> None:
        """Flush and close."""


class NoEvents:
    """Where TensorBoard is not installed."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files in a folder.

    Args:
        folder: Created if absent.
        step: The step that the run continues from: later events of an earlier process, which
            was killed after them, are hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers among ``values``; None and text are left out."""
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Dispensable:
    """Events that end at their first failure, a full disk say: it stops no run.

    Args:
        open_: opens the events.
        say: told once why there are no more.
    """

    def __init__(self, open_: Callable[[], Events], say: Callable[[str], None]) -> None:
        self._say = say
        self._events: Events = NoEvents()
        with self._tolerant():
            self._events = open_()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers, if that is still possible."""
        with self._tolerant():
            self._events.write(kind, step, values)

    def close(self) -> None:
        """Flush and close."""
        with self._tolerant():
            self._events.close()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever TensorBoard's thread met
            self._events = NoEvents()
            self._say(
                f"warning: no more TensorBoard events ({error}). Training goes on; metrics.jsonl "
                "has the same numbers."
            )


def open_events(folder: Path, step: int, say: Callable[[str], None]) -> Events:
    """TensorBoard's events if the package is there; what goes wrong with them is told, once."""

    def opened() -> Events:
        try:
            return TensorBoard(folder, step)
        except ImportError:
            return NoEvents()

    return Dispensable(opened, say)

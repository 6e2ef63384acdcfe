"""What a person watching sees: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from conadv._words import duration
from conadv.trainer.run.output import say

PLAIN_LINES = 20
"""How many lines a whole run prints where there is no terminal, evaluations aside."""


class Watcher(Protocol):
    """Display that is told about each step and shows it in its own way."""

    def update(
        self, step: int, epoch: float, loss: float, accuracy: float, images_per_second: float
    ) -> None:
        """One step is done. ``accuracy`` is a fraction of this step's clean images."""

    def say(self, text: str) -> None:
        """Show a message that stays."""

    def close(self) -> None:
        """Give the terminal back."""


def make_watcher(console: Console, name: str, start: int, total: int) -> Watcher:
    """A bar if the console is a terminal, otherwise plain lines.

    Args:
        console: Where to write; a quiet console shows nothing.
        name: Of the run.
        start: Steps done already, by the run that is resumed.
        total: Steps of the whole run.
    """
    kind = Bar if console.is_interactive else Lines
    return kind(console, name, start, total)


class Bar:
    """A live line: step, epoch, loss, accuracy, images per second, time left.

    Of a narrow terminal's line it takes what fits: first the bar goes, then the name of the run
    and all numbers but the loss. Nothing is cut.
    """

    def __init__(self, console: Console, name: str, start: int, total: int) -> None:
        room = console.width - 2 * len(f"{total}") - 12
        self._wide = room >= len(name) + 56
        shown = [
            *([TextColumn("[bold]{task.description}")] if room >= len(name) + 30 else []),
            *([BarColumn(bar_width=24)] if room >= len(name) + 82 else []),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        ]
        self._short = room < len(name) + 30
        self._progress = Progress(*shown, console=console, refresh_per_second=4)
        self._task = self._progress.add_task(name, total=total, completed=start, numbers="")
        self._progress.start()

    def update(
        self, step: int, epoch: float, loss: float, accuracy: float, images_per_second: float
    ) -> None:
        """Redraw, at most four times per second."""
        numbers = f"loss {loss:.3f}"
        if self._wide:
            numbers = _numbers(epoch, loss, accuracy, images_per_second)
        elif not self._short:
            numbers += f" accuracy {accuracy:.1%}"
        self._progress.update(self._task, completed=step, numbers=numbers)

    def say(self, text: str) -> None:
        """Print above the bar, in lines that fit."""
        say(self._progress.console, text)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()


class Lines:
    """About twenty lines over the run, evenly spaced in steps."""

    def __init__(self, console: Console, name: str, start: int, total: int) -> None:
        self._console = console
        self._name = name
        self._start = start
        self._total = total
        self._every = max(1, total // PLAIN_LINES)
        self._began = time.perf_counter()

    def update(
        self, step: int, epoch: float, loss: float, accuracy: float, images_per_second: float
    ) -> None:
        """Print a line if this step's turn has come."""
        if step % self._every and step != self._total:
            return
        spent = time.perf_counter() - self._began
        left = spent / (step - self._start) * (self._total - step)
        numbers = _numbers(epoch, loss, accuracy, images_per_second)
        self.say(f"{self._name} {step}/{self._total} {numbers} left {duration(left)}")

    def say(self, text: str) -> None:
        """Print a line."""
        say(self._console, text)

    def close(self) -> None:
        """Give nothing back."""


def _numbers(epoch: float, loss: float, accuracy: float, images_per_second: float) -> str:
    return (
        f"epoch {epoch:.2f} loss {loss:.3f} accuracy {accuracy:.1%} "
        f"{images_per_second:,.0f} images/s"
    )

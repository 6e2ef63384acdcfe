"""Ctrl-C, SIGTERM and their like: the first asks for a clean stop, a second stops at once."""

import contextlib
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

ASKING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""SIGHUP: the terminal is gone. SIGUSR1: what SLURM is usually told to send before the end."""
INSISTING = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0
"""Seconds that a handler waits for the thread that has the time."""
TOGETHER = 2.0
"""Seconds within which signals are one: a launcher and a job system both send theirs."""


class StopRequest:
    """A flag that the loop reads at each step boundary.

    As a context manager it takes over the signals and gives them back on leaving; SIGHUP stays
    ignored where it was, as under ``nohup``. In a thread other than the main one Python allows no
    handlers; then only :meth:`ask` sets the flag.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.heard: Callable[[str], object] = lambda name: None
        """Told the name of the first signal at once, by another thread: a step may be long."""
        self._previous: dict[int, Any] = {}
        self._since: float | None = None
        self._clock: _ArrivalTimes | None = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Ask for a stop at the next step boundary."""
        self.reason = reason

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            taken = [s for s in ASKING if signal.getsignal(s) is not signal.SIG_IGN]
            self._clock = _ArrivalTimes(lambda name: self.heard(name))
            self._previous = {s: signal.signal(s, self._handle) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python: leave the default.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if self._clock is not None:
            self._clock.close()
            self._clock = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert self._clock is not None
        arrived = self._clock.of(number)
        if self._since is None:
            self._since = arrived
            self.ask(signal.Signals(number).name)
        elif number in INSISTING and arrived - self._since > TOGETHER:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}: stopping at once")


class _ArrivalTimes:
    """When signals arrive, which may be long before Python gets to run their handler."""

    def __init__(self, heard: Callable[[str], object]) -> None:
        self._heard = heard
        self._times: dict[int, float] = {}
        self._arrived: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._owner = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        if self._owner != -1:  # an event loop's: leave it, and take the time of the handlers
            signal.set_wakeup_fd(self._owner, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def of(self, number: int) -> float:
        """When the signal that is being handled arrived, in seconds of the steady clock."""
        if self._owner != -1:
            return time.monotonic()
        with contextlib.suppress(queue.Empty):
            while number not in self._times:  # it was written down before the handler could run
                self._times.update([self._arrived.get(timeout=PATIENCE)])
            while True:
                self._times.update([self._arrived.get_nowait()])
        return self._times.pop(number, time.monotonic())

    def close(self) -> None:
        """Give the descriptor back."""
        if self._owner == -1:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        first = True
        while numbers := self._read.recv(64):
            now = time.monotonic()
            for number in numbers:
                self._arrived.put((number, now))
                if first and number in ASKING:
                    first = False
                    with contextlib.suppress(Exception):
                        self._heard(signal.Signals(number).name)

"""Ctrl-C and SIGTERM: the first asks for a clean stop, the second stops at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A flag that the loop reads at each step boundary.

    As a context manager it takes over SIGINT and SIGTERM and gives them back on leaving. In a
    thread other than the main one Python allows no handlers; then only :meth:`ask` sets the flag.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Ask for a stop at the next step boundary."""
        self.reason = reason

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python: leave the default.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}: stopping at once")
        self.ask(signal.Signals(number).name)

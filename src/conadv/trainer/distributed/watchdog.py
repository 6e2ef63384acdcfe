"""Every process shows that it lives; one that is gone or stuck stops all, with one message.

A collective that another process never enters waits for ever, or ends in as many stack traces as
there are processes. Here a thread of each process writes a beat into the launch's store every
second, rank 0 (or when that is silent, the next of a few judges) reads them all, and what is found
out is left in the store for everyone.
"""

import contextlib
import faulthandler
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from conadv.errors import activity
from conadv.trainer.distributed.failure import Beat, Judge, Verdict

EXIT_CODE = 2
"""Exit code of a process that is stopped because of another one."""
TAIL = (
    " All processes were stopped. Nothing since the last checkpoint is kept; the same command "
    "with --resume goes on from there."
)
BEATS_PER_SECOND = 1000
"""Most beats of all processes together; a single one sends one."""
GRACE = 5.0
"""Seconds that the main thread gets to end by itself, once the verdict is known."""
_PACKAGE = str(Path(__file__).parents[2])
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


def judges(size: int) -> list[int]:
    """The few ranks that look at everybody, should those before them be silent.

    Their machines differ where there are several. Every further rank costs a beat and a look for
    the verdict, whatever the number of processes.
    """
    return list(dict.fromkeys((0, size - 1, size // 2, 1 % size)))


class NoWatchdog:
    """The watchdog of a process on its own, or in a group that somebody else made."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Enclose a wait: nobody watches."""
        yield

    def fail(self, cause: str) -> bool:
        """Tell nobody: there is nobody else."""
        return True

    def lost(self) -> Verdict | None:
        """None: nothing is known."""
        return None

    def close(self) -> None:
        """Stop nothing: nothing runs."""


class Watchdog(NoWatchdog):
    """The watchdog of one process of a launch; its thread starts at once, :meth:`close` stops it.

    Args:
        store: what the processes of this attempt share, through a connection of its own:
            collectives may block another one for as long as they wait.
        rank: of this process.
        size: number of processes.
        timeout: seconds after which a process that is stuck stops all of them.
        stop: ends this process with an exit code, from a thread; tests put another one here.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: float,
        *,
        stop: Callable[[int], Any] = os._exit,
    ) -> None:
        self._store, self._rank, self._size, self._stop = store, rank, size, stop
        # The store is one process: many processes share what it can answer.
        self._interval = max(min(1.0, timeout / 5), size / BEATS_PER_SECOND)
        self._judge = Judge(size, timeout, evidence=max(5.0, 3 * self._interval))
        self._before = judges(size)[: judges(size).index(rank)] if rank in judges(size) else None
        """Who judges before this one; None: it does not."""
        self._said = Beat(name=f"process {os.getpid()} on {socket.gethostname()}")
        """Written by the main thread alone."""
        self._sequence = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        """Earlier judges' last new beats, and when they were seen."""
        self._main = threading.main_thread().ident or 0
        self._verdict: Verdict | None = None
        self._told = self._closing = False
        self._known, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    # -- called by the main thread -------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Enclose whatever needs the other processes."""
        waits, at = self._said.waits + 1, self._activity()
        self._said = replace(self._said, waits=waits, state="waiting", at=at)
        yield  # after an error this is still the place where the process waited
        self._said = replace(self._said, state="working")

    def fail(self, cause: str) -> bool:
        """Say that this process cannot go on: the others end quietly.

        Args:
            cause: one line.

        Returns:
            Whether this process is the one to tell; another may have failed first.
        """
        self._told = True
        verdict = Verdict(f"rank {self._rank} ({self._said.name}): {cause}", self._rank)
        try:
            kept = self._leave(verdict)
        except RuntimeError:  # no store: nobody else hears of it
            kept = verdict
        self.close()
        return kept.teller == self._rank

    def lost(self) -> Verdict | None:
        """The connection to another process broke: wait until it is known which, and why.

        The lowest rank that is not at fault has printed it then. None: nothing could be found out.
        """
        self._said = replace(self._said, state="lost")
        self._wake.set()
        self._known.wait(3 * self._judge.evidence + 5 * self._interval)
        return self._verdict

    def close(self) -> None:
        """Stop the thread; the others learn that this process left in good order."""
        if self._said.state != "lost":
            self._said = replace(self._said, state="done")
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        # Without the store the launcher is gone, and nobody is left to agree with.
        with contextlib.suppress(RuntimeError):
            while not self._closing and self._verdict is None:
                self._put()
                self._verdict = self._hear()
                self._wake.wait(0 if self._verdict else self._interval)
                self._wake.clear()
            if self._closing:
                self._put()
        verdict = self._verdict
        if verdict is not None and verdict.teller == self._rank and not self._told:
            self._tell(verdict.message)
        self._known.set()  # after it is told: the main thread may end the process now
        if verdict is not None:
            self._end()
        elif not self._closing:
            self._watch_alone()

    def _watch_alone(self) -> None:
        """Watch without a store, as after the launcher's end: wait for the others, not for ever."""
        seen, since = self._said.waits, time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if self._said.state == "working" or self._said.waits != seen:
                seen, since = self._said.waits, now
            elif now - since > self._judge.timeout:
                self._tell(
                    f"rank {self._rank} ({self._said.name}): the launcher is gone, and the others "
                    f"did not come within {self._judge.timeout:g} s."
                )
                self._stop(EXIT_CODE)
                return
            self._wake.wait(self._interval)

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            print(f"error: {message}{TAIL}", file=sys.stderr, flush=True)

    def _put(self) -> None:
        self._sequence += 1
        at, line = self._activity(), _line_of(self._main)
        beat = replace(self._said, sequence=self._sequence, at=at, line=line)
        self._store.set(f"beat/{self._rank}", beat.packed())

    def _activity(self) -> str:
        """What the main thread does; between two things, where it last waited for the others."""
        return activity(self._main) or self._said.at

    def _hear(self) -> Verdict | None:
        """What the first judge that is not silent has found out."""
        if self._before is not None and all(map(self._is_silent, self._before)):
            keys = [f"beat/{rank}" for rank in range(self._size)]
            if self._store.check(keys):  # the rendezvous finds those who never begin
                beats = [Beat.unpacked(text) for text in self._store.multi_get(keys)]
                found = self._judge.look(beats, time.monotonic())
                if found is not None:
                    return self._leave(found)
        if self._store.check(["verdict"]):
            return Verdict.unpacked(self._store.get("verdict"))
        return None

    def _is_silent(self, judge: int) -> bool:
        if not self._store.check([f"beat/{judge}"]):
            return False
        beat, now = self._store.get(f"beat/{judge}"), time.monotonic()
        if beat != self._seen.get(judge, (b"", 0.0))[0]:
            self._seen[judge] = (beat, now)
        return now - self._seen[judge][1] > 3 * self._interval

    def _leave(self, verdict: Verdict) -> Verdict:
        """Leave a verdict for all; the one that counts, which is the first."""
        return Verdict.unpacked(self._store.compare_set("verdict", "", verdict.packed()))

    def _end(self) -> None:
        """End the process unless its main thread does so in time."""
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if self._closing:
                return
            time.sleep(0.05)
        self._stop(EXIT_CODE)


def _line_of(thread: int) -> str:
    """Where a thread is in this package, such as ``trainer/trainer.py:203 in _round``.

    As faulthandler writes it: to walk another thread's frames from Python can crash or block the
    interpreter (python/cpython#99110, #106883).
    """
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        mine = re.search(
            rf"hread 0x0*{thread:x}\b[^\n]*\n((?:  .*\n)*)",
            file.read().decode(errors="replace"),
        )
        for path, line, name in _FRAME.findall(mine[1] if mine else ""):
            if path.startswith(_PACKAGE) and not path.startswith(f"{_PACKAGE}/trainer/distributed"):
                return f"{path[len(_PACKAGE) + 1 :]}:{line} in {name}"
    return ""

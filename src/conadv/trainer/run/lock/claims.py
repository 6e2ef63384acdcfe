"""Who works at what, on one machine or many that share a folder: runs of a study, a run's folder.

A claim is a file that only one process can create. Its owner touches it now and then. Taking over
means creating the file of the next *generation*: again only one can, so there is no lock to be
left behind, and an owner that was merely asleep sees that it has been replaced. Ages are measured
as "unchanged for so long on my own clock", so the machines' clocks may differ.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELEASED = "released"


@dataclass(frozen=True)
class Claim:
    """The right to work at one run, until a later generation exists."""

    folder: Path
    generation: int

    @property
    def path(self) -> Path:
        """The file of the claim."""
        return self.folder / f"claim-{self.generation}.json"

    def owned(self) -> bool:
        """Whether nobody has taken over."""
        return self.path.exists() and not Claim(self.folder, self.generation + 1).path.exists()

    def forget_earlier(self) -> None:
        """Remove the files of all earlier generations but the last."""
        for generation, path in _generations(self.folder):
            if generation < self.generation - 1:
                path.unlink(missing_ok=True)
                path.with_suffix(f".{RELEASED}").unlink(missing_ok=True)

    def release(self) -> None:
        """Let the next one go on at once."""
        with contextlib.suppress(FileExistsError):
            self.path.with_suffix(f".{RELEASED}").touch(exist_ok=False)

    @contextlib.contextmanager
    def beating(self, every: float, beat: Callable[[bool], None]) -> Iterator[None]:
        """Leave a sign of life now and then, from a thread.

        Args:
            every: Seconds between them.
            beat: Called each time with whether the claim is still owned.
        """
        done = threading.Event()

        def live() -> None:
            while not done.wait(every):
                # A disk that is away for a moment is no reason to stop working.
                with contextlib.suppress(OSError):
                    os.utime(self.path)
                    beat(self.owned())

        thread = threading.Thread(target=live, name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Claims:
    """The claims on the tasks in a folder, as one process sees them.

    Args:
        root: Folder of all tasks.
        stale_after: Seconds without a sign of life after which an owner counts as dead. One on
            this machine counts as dead as soon as its process is gone.
        clock: Seconds, for tests.
        launch: Name of the launch that this process belongs to. The owners of its earlier attempts
            count as dead: a launcher starts none before those before have ended.
    """

    def __init__(
        self,
        root: Path,
        stale_after: float,
        clock: Callable[[], float] = time.monotonic,
        launch: str | None = None,
    ) -> None:
        self.root = root
        self.stale_after = stale_after
        self.launch = launch
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}
        self._living: set[Path] = set()

    def take(self, task: str) -> Claim | None:
        """Claim a task, or take it over from the dead; None while another works at it."""
        folder = self.root / task
        newest = self.newest(folder)
        if newest is not None and not self._is_over(newest):
            return None
        generation = 0 if newest is None else newest.generation + 1
        claim = Claim(folder, generation)
        folder.mkdir(parents=True, exist_ok=True)
        made = _create(claim.path, _self() | ({"launch": self.launch} if self.launch else {}))
        return claim if made and claim.owned() else None

    def working(self, task: str) -> dict[str, Any] | None:
        """Who works at a task now, or None."""
        newest = self.newest(self.root / task)
        return None if newest is None or self._is_over(newest) else _read(newest.path)

    def lives(self, task: str) -> bool:
        """Whether the owner is known to live: its process is there, or a sign of life was seen."""
        newest = self.newest(self.root / task)
        return newest is not None and not self._is_over(newest) and newest.path in self._living

    def deaths(self, claim: Claim) -> int:
        """How many owners before this one ended without giving the task back."""
        before = (Claim(claim.folder, n).path for n in range(claim.generation))
        return sum(not path.with_suffix(f".{RELEASED}").exists() for path in before)

    @staticmethod
    def newest(folder: Path) -> Claim | None:
        """The claim that counts."""
        newest = max((number for number, _ in _generations(folder)), default=None)
        return None if newest is None else Claim(folder, newest)

    def _is_over(self, claim: Claim) -> bool:
        if claim.path.with_suffix(f".{RELEASED}").exists():
            return True
        owner = _read(claim.path)  # opening asks a network file system for the present time stamp
        if self.launch is not None and owner.get("launch") == self.launch:
            return True
        if owner.get("place") == place() and "started" in owner:
            if process_start(int(owner["pid"])) != owner["started"]:
                return True
            self._living.add(claim.path)
        beat = claim.path.stat().st_mtime_ns
        last, since = self._seen.get(claim.path, (None, 0.0))
        if beat != last:
            if last is not None:
                self._living.add(claim.path)
            self._seen[claim.path] = (beat, self._clock())
            return False
        return self._clock() - since > self.stale_after


def place() -> str:
    """Where process numbers mean the same: a machine, and a container on it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _generations(folder: Path) -> list[tuple[int, Path]]:
    return [
        (int(number), path)
        for path in folder.glob("claim-*.json")
        if (number := path.stem.removeprefix("claim-")).isdigit()
    ]


def _self() -> dict[str, Any]:
    pid = os.getpid()
    started = process_start(pid)
    known: dict[str, Any] = {} if started is None else {"started": started}
    host = socket.gethostname()
    known |= {"host": host, "pid": pid, "parent": os.getppid(), "place": place()}
    return {**known, "time": time.time()}


def process_start(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None if it is gone.

    Distinguishes a process from a later one of the same number. None also where the system does
    not tell (no ``/proc``): such a process leaves no ``started`` in its claims, and is judged by
    its signs of life alone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


def is_orphan(owner: dict[str, Any]) -> bool:
    """Whether a claim's owner is a process of this machine that has lost its parent."""
    if owner.get("place") != place() or "parent" not in owner:
        return False
    try:
        text = Path(f"/proc/{owner['pid']}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[1] != str(owner["parent"])


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Create a file that nobody else has created."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(content, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

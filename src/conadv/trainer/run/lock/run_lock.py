"""One run folder, one run: who trains in it, and who takes over from the dead."""

import contextlib
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conadv.errors import RunFolderError, RunHeldError
from conadv.trainer.run.lock.claims import Claim, Claims, is_orphan

LOCK = "lock"
"""Name of the lock's folder in the run folder."""
BEAT = 5.0
"""Seconds between signs of life."""
STALE = 45.0
"""Seconds without one after which a process of another machine counts as dead."""


class RunLock:
    """The right to write into a run folder, held by one process at a time.

    A claim (see `conadv.trainer.run.lock.claims`) in the folder ``lock``: all that it needs of the
    file system is that only one process can create a file, so it works on network file systems.

    Args:
        root: The run folder. It is created with the lock, and removed again if nothing else came.
        beat: Seconds between signs of life.
        stale: Seconds without one after which the holder counts as dead.
    """

    def __init__(self, root: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.root = root
        self.beat, self.stale = beat, stale
        self._claims = Claims(root, stale, launch=launch_name())
        self._claim: Claim | None = None
        self._held = contextlib.ExitStack()
        self._lost = False

    def take(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, from a dead holder too; that may need some patience.

        Args:
            say: Told why it takes a while.

        Raises:
            RunHeldError: Another process trains here; the message names it.
            RunFolderError: The folder cannot be written.
        """
        waiting = False
        while (claim := self._try()) is None:
            if self._claims.lives(LOCK) and not self._is_ending():
                raise RunHeldError(
                    f"{self._owner()} trains in {self.root}. Two runs in one folder would destroy "
                    "each other: wait for it or stop it, or give another folder with --out."
                )
            if not waiting:
                ending = "it ends, for its launcher is gone"
                looking = f"looking whether it lives, for up to {self.stale:.0f} s"
                doing = ending if self._is_ending() else looking
                say(f"{self._owner()} trained in {self.root}: {doing}")
                waiting = True
            time.sleep(min(1.0, self.beat / 5))
        claim.forget_earlier()
        self._claim, self._lost = claim, False
        self._held.enter_context(claim.beating(self.beat, self._hear))

    def check(self, *, look: bool = False) -> None:
        """See that the lock is still this process's, which may have been asleep for a while.

        Args:
            look: Look into the folder, instead of at what the last sign of life found.

        Raises:
            RunHeldError: Another process took it for dead and trains here now.
        """
        if look and self._claim is not None:
            self._hear(self._claim.owned())
        if self._lost:
            raise RunHeldError(
                f"{self._owner()} took this process for dead and trains in {self.root} now. This "
                "one stops and writes nothing more."
            )

    def release(self) -> None:
        """Let the next one in at once; nothing if the lock was not taken."""
        claim, self._claim = self._claim, None
        self._held.close()
        if claim is None or self._lost:
            return
        with contextlib.suppress(OSError):
            claim.release()
            if [path.name for path in self.root.iterdir()] == [LOCK]:  # nothing came of it
                for path in claim.folder.iterdir():
                    path.unlink()
                claim.folder.rmdir()
                self.root.rmdir()

    def _try(self) -> Claim | None:
        try:
            return self._claims.take(LOCK)
        except OSError as error:
            raise RunFolderError(
                f"cannot write into the run folder {self.root}: {error.strerror or error}. Give a "
                "folder you can write to with --out."
            ) from error

    def _is_ending(self) -> bool:
        """Whether the owner is an orphan of a launch, which stops by itself."""
        owner = self._claims.working(LOCK) or {}
        return "launch" in owner and is_orphan(owner)

    def _hear(self, owned: bool) -> None:
        self._lost = self._lost or not owned

    def _owner(self) -> str:
        return described(self._claims.working(LOCK) or {})


def described(owner: dict[str, Any]) -> str:
    """Who holds a claim, and since when."""
    if "pid" not in owner:
        return "another process"
    since = datetime.fromtimestamp(owner.get("time", 0), UTC).isoformat(" ", "seconds")
    return f"process {owner['pid']} on {owner.get('host')} (since {since})"


def launch_name() -> str | None:
    """What all attempts of a launch have in common, or None without a launcher."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(os.environ.get(name, "") for name in names)

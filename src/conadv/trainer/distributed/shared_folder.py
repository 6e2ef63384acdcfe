"""Whether all ranks see one and the same folder: found before they train, not at a restart."""

import socket
import time
import uuid
from pathlib import Path

from conadv.errors import DistributedError
from conadv.trainer.distributed.world import World

PATIENCE = 10.0
"""Seconds that a network file system may take to show a new file."""
SUFFIX = ".partial"
"""Suffix of files that are cleared away if a kill leaves them."""


def check_same_folder(folder: Path, world: World, *, patience: float = PATIENCE) -> None:
    """Write and read back: rank 0 for all ranks, and each machine for rank 0.

    Args:
        folder: that rank 0 can write to.
        world: this process among those of the run.
        patience: seconds to wait for a file.

    Raises:
        DistributedError: on every rank the same: which ones see another folder, or cannot write.
    """
    if world.size == 1:
        return
    token = world.first(uuid.uuid4().hex)
    first = folder / f".seen-{token}{SUFFIX}"
    world.on_main(lambda: first.write_text(token))
    problem = _missing(first, token, patience)
    own = folder / f".seen-{token}-{world.rank}{SUFFIX}"
    speaks = world.local_rank == 0 and not world.main
    if problem is None and speaks:
        try:
            own.write_text(token)
        except OSError as error:
            problem = f"cannot write into it ({error.strerror})"
    answers = world.gather((problem, speaks, socket.gethostname()))

    def judge() -> None:
        problems = [f"rank {r} on {host} {p}" for r, (p, _, host) in enumerate(answers) if p]
        for rank, (failed, spoke, host) in enumerate(answers):
            path = folder / f".seen-{token}-{rank}{SUFFIX}"
            if spoke and not failed and _missing(path, token, patience):
                problems.append(f"rank 0 does not see what rank {rank} on {host} wrote there")
            path.unlink(missing_ok=True)
        first.unlink(missing_ok=True)
        if problems:
            raise DistributedError(
                f"{folder} is not one folder for all {world.size} processes: "
                f"{'; '.join(problems[:8])}. Give a run folder on storage that all machines see, "
                "and may write to."
            )

    world.on_main(judge)


def _missing(path: Path, content: str, patience: float) -> str | None:
    end = time.monotonic() + patience
    while True:
        try:
            if path.read_text() == content:
                return None
        except OSError:
            pass
        if time.monotonic() > end:
            return "does not see what rank 0 wrote there"
        time.sleep(0.1)

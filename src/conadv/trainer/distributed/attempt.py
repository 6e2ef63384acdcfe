"""A name for this attempt of a launch that all its processes know, and no earlier attempt used.

No launcher hands one out: each agent of torchrun counts its own restarts only, and a machine that
joins later begins at none.
"""

import time
import uuid
from typing import Any

PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between looks into the store: few processes, and many that share it."""


def agree_on_attempt(store: Any, rank: int, size: int, timeout: float) -> str:
    """Agree on a name, through a store that may still hold what earlier attempts left.

    Rank 0 makes the name up, and each rank hands it to ranks 2r+1 and 2r+2: a few keys per process
    and about log2(size) messages one after the other. A process believes only an answer to its own
    greeting, which nobody has used before; whoever hands the name on repeats it until it is heard.

    With the name goes the number of processes that rank 0 was started as one of: whoever was told
    another one says so now, instead of waiting for processes that nobody has started.

    Args:
        store: of the launch: ``set``, ``get`` and ``check`` (a `torch.distributed.Store`).
        rank: of this process.
        size: number of processes.
        timeout: seconds to wait for the others.

    Raises:
        RuntimeError: a process did not come, or was started as one of another number.
    """
    greeting, end = uuid.uuid4().hex, time.monotonic() + timeout
    pause = min(LONGEST_PAUSE, PAUSE * size**0.5)
    if rank == 0:
        name = f"{greeting}.{size}"
    else:
        answer = f"conadv/answer/{rank}"
        store.set(f"conadv/greeting/{rank}", greeting)
        while (found := _read(store, answer).partition(" "))[0] != greeting:
            _pause(pause, end, (rank - 1) // 2)
        name = found[2]
        store.set(f"conadv/{name}/heard/{rank}", str(size))
        _check_size(rank, size, 0, int(name.partition(".")[2]))
    waiting = {child: "" for child in (2 * rank + 1, 2 * rank + 2) if child < size}
    while waiting:
        for child, answered in list(waiting.items()):
            if told := _read(store, f"conadv/{name}/heard/{child}"):
                _check_size(rank, size, child, int(told))
                del waiting[child]
            elif (asked := _read(store, f"conadv/greeting/{child}")) not in ("", answered):
                store.set(f"conadv/answer/{child}", f"{asked} {name}")
                waiting[child] = asked
        if waiting:
            _pause(pause, end, min(waiting))
    return name


def _check_size(rank: int, size: int, other: int, told: int) -> None:
    if told != size:
        raise RuntimeError(
            f"rank {rank} was started as one of {size} processes, rank {other} as one of {told}"
        )


def _read(store: Any, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _pause(seconds: float, end: float, missing: int) -> None:
    if time.monotonic() > end:
        raise RuntimeError(f"rank {missing} did not come in time")
    time.sleep(seconds)

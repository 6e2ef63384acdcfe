"""This process's place among the processes of a run, and how they are joined.

Processes are started by ``torchrun`` (or ``conadv train --devices N``), which names rank and world
size in the environment. Without these variables a run is one process, and nothing here starts.
"""

import atexit
import contextlib
import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Before there is a group: the defaults of its arguments would hold the group for ever, and `leave`
# could not end its threads. DistributedDataParallel imports it on first use.
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from conadv._numbers import divisors
from conadv._tree import map_tensors
from conadv.errors import DistributedError
from conadv.trainer.distributed.attempt import agree_on_attempt
from conadv.trainer.distributed.watchdog import NoWatchdog, Watchdog

LETTING_GO = 0.2
"""Seconds that a group's threads get where they cannot be ended."""
MESH = 64
"""Up to so many processes gloo connects each with each at once; of more, when they first talk."""
LATER = 30.0
"""Seconds that a collective waits longer than the watchdog, which can say what is wrong."""
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank and number of processes. The default is a process on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    """Number of processes on this machine."""
    watchdog: NoWatchdog = field(default_factory=NoWatchdog, compare=False, repr=False)
    """Sees to it that no process waits for ever for one that is gone or stuck."""

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in the order of the ranks, on every rank. Small things only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.watchdog.waiting():
            dist.all_gather_object(values, value)
        return values

    def first(self, value: T) -> T:
        """What rank 0 gives, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.main else None]
        with self.watchdog.waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    def spread(self, value: T) -> T:
        """What rank 0 gives, on every rank: nested structures, each tensor sent by itself.

        As a tree of messages: a process sends and receives O(log N) copies, whatever their size.
        """
        if self.size == 1:
            return value
        # Backends that know GPUs alone have to be handed what lies there.
        place = "cpu" if "gloo" in dist.get_backend_config() else "cuda"

        def sent(tensor: Tensor) -> Tensor:
            if self.main:
                whole = tensor.detach().to(place).contiguous()
            else:
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=place)
            if whole.numel():
                dist.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
            return whole.to("cpu")

        outline = self.first(map_tensors(lambda tensor: tensor.to("meta"), value))
        with self.watchdog.waiting():
            return map_tensors(sent, value if self.main else outline)  # type: ignore[no-any-return]

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; every rank gets what it returns, or what it raises."""
        outcome: tuple[T | None, BaseException | None] = (None, None)
        if self.main:
            try:
                outcome = (action(), None)
            except Exception as error:
                if self.size == 1:
                    raise
                outcome = (None, error)
        value, failure = self.first(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            self.gather(None)  # unlike dist.barrier this needs no device

    def slots(self, micro_steps: int) -> range:
        """The micro-batches of a step that are this rank's: a contiguous part.

        Args:
            micro_steps: micro-batches of a full step, on all ranks together.

        Raises:
            DistributedError: they cannot be dealt out evenly; the message says which numbers can.
        """
        if micro_steps % self.size:
            raise DistributedError(
                f"a step of {micro_steps} micro-batches cannot be dealt out to {self.size} "
                f"processes: each must get as many. Possible numbers of processes are "
                f"{_shortened(divisors(micro_steps))}; a smaller batch.micro_batch (with "
                "batch.norm_group) allows more."
            )
        own = micro_steps // self.size
        return range(self.rank * own, (self.rank + 1) * own)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone, or did not come."""
    if isinstance(error, dist.DistError):
        return True
    # gloo reports in plain RuntimeErrors, with its own source file in front.
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


def launched() -> bool:
    """Whether a launcher (torchrun) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_device(asked: str, world: World) -> str:
    """The device of this rank: each process on a machine gets a GPU of its own.

    Args:
        asked: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        world: of this process.

    Raises:
        DistributedError: more processes than GPUs on this machine, or one GPU named for all.
    """
    if world.size == 1 or not (asked.startswith("cuda") or asked == "auto"):
        return asked
    if asked == "auto" and not torch.cuda.is_available():
        return "cpu"
    if ":" in asked:
        raise DistributedError(
            f"hardware.device={asked} with {world.size} processes: they would share one GPU. Give "
            "cuda, and each process takes its own (CUDA_VISIBLE_DEVICES says which there are)."
        )
    there = torch.cuda.device_count()
    if world.local_size > there:
        raise DistributedError(
            f"{world.local_size} processes on this machine, which has {there} GPUs: start at most "
            f"{there} per machine, or give hardware.device=cpu."
        )
    return f"cuda:{world.local_rank}"


@contextlib.contextmanager
def join(device: str, timeout: float) -> Iterator[World]:
    """Join the other processes of the launch for the length of a block.

    NCCL for GPUs and gloo for CPUs. A process group that exists already is used and left alone;
    without a launch nothing is joined.

    Args:
        device: what the recipe asks for.
        timeout: seconds after which a process that is stuck stops all of them.

    Raises:
        DistributedError: the device cannot serve so many processes, or the group cannot be made.
    """
    if dist.is_available() and dist.is_initialized():
        yield _world(dist.get_rank(), dist.get_world_size())
        return
    if not launched():
        yield World()
        return
    world = _world(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    place = local_device(device, world)
    backend = "gloo"
    if place.startswith("cuda"):
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    if world.size > MESH:
        # Its collectives are rings and trees: O(log N) connections of a process are ever used.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    try:
        store, notes = _own_stores(world, timeout)
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout + LATER),
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"rank {world.rank} of {world.size} could not join the others: "
            f"{str(error).splitlines()[0]}. Is MASTER_ADDR:MASTER_PORT "
            f"({os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}) reachable from "
            "every machine, and was every machine started with the same number of processes?"
        ) from error
    watchdog = Watchdog(notes, world.rank, world.size, timeout)
    try:
        yield replace(world, watchdog=watchdog)
    finally:
        watchdog.close()
        leave()


def leave() -> None:
    """Leave the process group, and end its threads with it.

    gloo's threads let go of a finished collective's tensors on their own time. One that does so
    while the interpreter shuts down aborts the process, after a run that went well. The threads
    end with the last reference to the group, and wrappers that refer to themselves hold some.
    """
    group = dist.group.WORLD  # Python's reference goes last: it waits for threads without the GIL
    alive = weakref.ref(group)
    dist.destroy_process_group()
    gc.collect()
    if sys.exc_info()[0] is not None:  # the error on its way out holds the wrappers
        atexit.register(_end_threads, [group])
        return
    del group
    if alive() is not None:  # in DTensor's caches for good, say: a moment to let go has to do
        time.sleep(LETTING_GO)


def _end_threads(groups: list[Any]) -> None:
    gc.collect()
    groups.clear()


def _own_stores(world: World, timeout: float) -> tuple[Any, Any]:
    """The launch's store, with a part of it for this attempt alone; and once more for notes.

    After a restart torchrun hands out the store of the attempt before, with the addresses of the
    processes that are gone: reading one of these, a process would wait for them for ever.
    """
    wait = timedelta(seconds=timeout)
    meeting = rendezvous("env://", world.rank, world.size, timeout=wait)
    store, _, _ = next(iter(meeting))
    base = store
    while isinstance(base, dist.distributed_c10d.PrefixStore):
        base = base.underlying_store
    # Collectives hold a connection for as long as they wait for a key of another process.
    again = dist.TCPStore(  # type: ignore[attr-defined]
        base.host, base.port, is_master=False, timeout=wait
    )
    own = f"conadv/{agree_on_attempt(again, world.rank, world.size, timeout)}"
    return dist.distributed_c10d.PrefixStore(own, store), dist.distributed_c10d.PrefixStore(
        f"{own}/notes", again
    )


def _world(rank: int, size: int) -> World:
    return World(
        rank,
        size,
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", size)),
    )


def _shortened(numbers: list[int], shown: int = 12) -> str:
    found = [str(number) for number in numbers]
    few = found if len(found) <= shown else [*found[: shown - 1], "...", found[-1]]
    return ", ".join(few)

"""Worker processes, and the thread that feeds them and fetches what they made."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.decoding.policy import Preparation
from conadv.trainer.data.decoding.request import Answer, Chunk, decode_chunk
from conadv.trainer.data.sources.source import ImageSource

CLOSED = "The loader of images is closed."


@dataclass(frozen=True)
class Order:
    """A chunk, and what to call (in the pool's thread) when it is done or never will be."""

    chunk: Chunk
    deliver: Callable[[Tensor, Answer], None]
    """Gets pixels that are only lent, uint8 (n, size, size, 3), and the answer."""
    fail: Callable[[str], None]


class Pool:
    """Decodes orders, first come first served, in processes.

    Each worker has two slots of shared memory, so the queues carry a few bytes only, and pixels
    are copied once. If one worker dies, all orders fail, now and later: which images are missing
    cannot be known, and a machine that kills one process for memory kills the next.

    Args:
        job: the same for all workers.
        workers: processes, 1 or more.
        start_method: of `multiprocessing`.

    Raises:
        DataError: there is too little shared memory.
    """

    PATIENCE = 5.0
    """Seconds that workers get to end by themselves, all together."""

    def __init__(self, job: Job, workers: int, start_method: str) -> None:
        size = workers * IN_HAND * job.slot_bytes
        _check_shared_memory(size)
        context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            # Imports happen once, in the server; the option says what to import, not only this.
            context.set_forkserver_preload([work.__module__])
        self._job = job
        self._memory = SharedMemory(create=True, size=size)
        self._lock = threading.Lock()
        self._waiting: deque[Order] = deque()
        self._failure: str | None = None
        self._closing = self._woken = False
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._in_hand: list[deque[Order]] = [deque() for _ in range(workers)]
        self._turns = [0] * workers
        self._wake_in, self._wake_out = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._serve, name="conadv-decode", daemon=True)
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                self._connections.append(ours)
                process = context.Process(
                    target=work,
                    args=(theirs, self._memory.name, number, job),
                    name=f"conadv-decode-{number}",
                    daemon=True,
                )
                process.start()
                self._processes.append(process)
                theirs.close()
        except BaseException:
            self.close()
            raise
        self._thread.start()

    @property
    def processes(self) -> list[BaseProcess]:
        """The workers."""
        return list(self._processes)

    def submit(self, orders: list[Order]) -> None:
        """Queue orders; they fail at once where a worker has died or the pool is closed."""
        with self._lock:
            failure = self._failure
            if failure is None:
                self._waiting += orders
                self._wake()
        if failure is not None:
            for order in orders:
                order.fail(failure)

    def close(self) -> None:
        """End the workers and give the memory back; whatever is not done fails. Repeatable."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        for connection in self._connections:
            with suppress(OSError):  # it is gone already
                connection.send(None)
            connection.close()
        deadline = time.monotonic() + self.PATIENCE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._give_up(CLOSED)
        self._wake_in.close()
        self._wake_out.close()
        self._memory.close()
        self._memory.unlink()

    def _wake(self) -> None:
        """Make the thread look; with the lock held."""
        if not self._woken:  # one message at a time, so that the pipe is never full
            self._woken = True
            self._wake_out.send_bytes(b"!")

    # -- in the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._closing and self._failure is None:
                self._hand_out()
                self._take()
        except Exception as error:  # nobody sees a thread die: whoever waits has to hear of it
            self._give_up(f"Decoding failed: {type(error).__name__}: {error}")

    def _hand_out(self) -> None:
        """Give each worker as many orders as it may have, the idlest first."""
        with self._lock:
            while self._waiting:
                idlest = min(range(len(self._in_hand)), key=lambda n: len(self._in_hand[n]))
                if len(self._in_hand[idlest]) >= IN_HAND:
                    return
                order = self._waiting.popleft()
                self._in_hand[idlest].append(order)
                try:
                    self._connections[idlest].send(order.chunk)
                except OSError:  # it is gone; its sentinel says so in a moment
                    return

    def _take(self) -> None:
        """Wait until something happens, and deal with it."""
        sentinels = {process.sentinel: process for process in self._processes}
        ready: list[Any] = wait([self._wake_in, *self._connections, *sentinels])
        if self._wake_in in ready:
            with self._lock:
                self._wake_in.recv_bytes()
                self._woken = False
        for number, connection in enumerate(self._connections):
            if connection in ready:
                try:
                    answer: Answer = connection.recv()
                except (EOFError, OSError):
                    self._processes[number].join(self.PATIENCE)
                    return self._give_up(_exit_message(self._processes[number]))
                self._deliver(number, answer)
        for sentinel, process in sentinels.items():
            if sentinel in ready:
                process.join(self.PATIENCE)
                return self._give_up(_exit_message(process))

    def _deliver(self, number: int, answer: Answer) -> None:
        order = self._in_hand[number].popleft()
        place = number * IN_HAND + self._turns[number]
        self._turns[number] = (self._turns[number] + 1) % IN_HAND
        order.deliver(slot(self._memory, self._job, place, len(order.chunk.samples)), answer)

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._failure = self._failure or why
            orders = [*self._waiting, *(order for hand in self._in_hand for order in hand)]
            self._waiting.clear()
            for hand in self._in_hand:
                hand.clear()
        for order in orders:
            order.fail(self._failure)


def _exit_message(process: BaseProcess) -> str:
    code = process.exitcode
    hints = {
        -int(signal.SIGKILL): "killed, as the system does when memory runs out",
        -int(signal.SIGBUS): "bus error: /dev/shm is full",
        1: "what went wrong stands above; a script needs `if __name__ == '__main__':`",
    }
    how = hints.get(code or 0, "see above for what it wrote")
    return (
        f"A process that decodes images ({process.name}, pid {process.pid}) died with exit code "
        f"{code}: {how}. Try fewer workers, or workers=0 to see the error itself."
    )


def _check_shared_memory(size: int) -> None:
    """Refuse too little: it would end workers with a bus error in the middle of a run."""
    if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free) < size:
        raise DataError(
            f"Decoding needs {size / 2**20:.0f} MiB of shared memory, /dev/shm has "
            f"{free / 2**20:.0f} free: take fewer workers, or give a container more "
            "(docker run --shm-size=1g)."
        )


IN_HAND = 2
"""Chunks that a worker has at a time: while the main process fetches one, it makes the next."""


@dataclass(frozen=True)
class Job:
    """What stays the same for all chunks."""

    source: ImageSource
    prepare: Preparation
    seed: int
    chunk: int
    """Most images in a chunk."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of a chunk's pixels."""
        return self.chunk * self.prepare.size**2 * 3


def slot(memory: SharedMemory, job: Job, number: int, count: int) -> Tensor:
    """The pixels of `count` images in a slot, uint8, shape (count, size, size, 3), not copied.

    Drop it before the memory is closed.
    """
    side = job.prepare.size
    assert memory.buf is not None  # it is open
    array = np.frombuffer(
        memory.buf, np.uint8, count * side * side * 3, offset=number * job.slot_bytes
    )
    return torch.from_numpy(array.reshape(count, side, side, 3))


def work(connection: Connection, memory_name: str, number: int, job: Job) -> None:
    """Decode chunks until the connection or the parent process ends.

    Args:
        connection: brings a `Chunk` at a time, takes an `Answer` for each; None: the end.
        memory_name: of the shared memory.
        number: of this worker; its slots are number * IN_HAND and those that follow, in turn.
        job: what to do.
    """
    # Ctrl-C reaches the whole process group; the main process decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # workers share out the cores, and threads do not survive a fork
    memory = SharedMemory(memory_name)
    parent = multiprocessing.parent_process()
    sentinels = [] if parent is None else [parent.sentinel]
    turn = 0
    try:
        while True:
            # Forked workers hold each other's connections, so the end of one may not show.
            if connection not in wait([connection, *sentinels]):
                return
            chunk: Chunk | None = connection.recv()
            if chunk is None:
                return
            connection.send(_decode(memory, job, number * IN_HAND + turn, chunk))
            turn = (turn + 1) % IN_HAND
    except (EOFError, OSError):  # the main process has closed its end, or is gone
        return
    finally:
        memory.close()


def _decode(memory: SharedMemory, job: Job, number: int, chunk: Chunk) -> Answer:
    """Decode into a slot, of which nothing is held when the answer is sent: that may fail."""
    out = slot(memory, job, number, len(chunk.samples))
    return decode_chunk(out, job.source, job.prepare, job.seed, chunk)

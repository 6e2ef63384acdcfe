"""The process that decodes: waits for chunks, writes pixels into shared memory, answers."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from torch import Tensor

from conadv.data.decoding.chunk import Answer, Chunk, EncodedImages, decode_chunk
from conadv.data.decoding.policy import Preparation

IN_HAND = 2
"""Chunks that a worker has at a time: while the main process fetches one, it makes the next."""


@dataclass(frozen=True)
class Job:
    """What stays the same for all chunks."""

    source: EncodedImages
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
    out = slot(memory, job, number, len(chunk.samples))
    return decode_chunk(out, job.source, job.prepare, job.seed, chunk)

"""One request for images, from asking to the result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from conadv.errors import ConadvError, DataError
from conadv.trainer.data.decoding.decode import DecodeError
from conadv.trainer.data.decoding.policy import Preparation
from conadv.trainer.data.sources.source import ImageSource


class Decoded(NamedTuple):
    """What a request gives."""

    images: Tensor
    """uint8 RGB, shape (N, 3, size, size), memory format channels_last, on the CPU."""
    labels: Tensor
    """int64, shape (N,)."""
    replaced: tuple[int, ...]
    """Places whose image is damaged, and which hold the next good one of the request instead."""


class Pending:
    """Where the chunks of a request are put together, by whatever thread they come.

    It knows nothing of the loader, so that the pool's thread never holds one alive.

    Args:
        pixels: to be filled, uint8, shape (N, size, size, 3).
        chunks: how many there will be.
    """

    def __init__(self, pixels: Tensor, chunks: int) -> None:
        self.pixels = pixels
        self.corrupt: dict[int, str] = {}
        """Places that are damaged, and why."""
        self.error: str | None = None
        self._missing = chunks
        self._ready = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._ready.is_set()

    def add(self, place: int, pixels: Tensor, answer: Answer) -> None:
        """Take what became of the chunk that begins at `place`; the pixels are copied."""
        if answer.error is not None:
            return self.fail(answer.error)
        self.pixels[place : place + len(pixels)] = pixels
        self.corrupt |= {place + p: why for p, why in answer.corrupt.items()}
        self._missing -= 1
        if self._missing == 0:
            self._ready.set()

    def adder(self, place: int) -> Callable[[Tensor, Answer], None]:
        """`add` for one place."""
        return lambda pixels, answer: self.add(place, pixels, answer)

    def fail(self, why: str) -> None:
        """Say that there will be no result; the first reason counts."""
        self.error = self.error or why
        self._ready.set()

    def wait(self, timeout: float | None) -> None:
        """Wait until all chunks are there or one has failed.

        Raises:
            DataError: one has failed, or nothing came in time.
        """
        if not self._ready.wait(timeout):
            raise DataError(
                f"No images for {timeout:g} s: the workers wait for the disk or the network, or "
                "are too few. Look there, or raise the loader's timeout."
            )
        if self.error is not None:
            raise DataError(self.error)


class Request:
    """Images that were asked for; made by `ImageLoader.request`."""

    def __init__(self, pending: Pending, finish: Callable[[], Decoded]) -> None:
        self._pending = pending
        self._finish = finish
        self._result: Decoded | None = None

    def __len__(self) -> int:
        return len(self._pending.pixels)

    def done(self) -> bool:
        """Whether `result` returns without waiting for a worker; without workers it never does."""
        return self._pending.ready

    def result(self) -> Decoded:
        """Wait for the images; a second call returns the same ones.

        Raises:
            DataError: an image cannot be read; all of the request are damaged, or too many of
                those read so far; a worker died; it took longer than the loader's `timeout`; the
                loader is closed.
        """
        if self._result is None:
            self._result = self._finish()
        return self._result


@dataclass(frozen=True)
class Chunk:
    """Neighbouring images of a step."""

    samples: tuple[int, ...]
    """Positions in the source."""
    step: int
    start: int
    """Place of the first one among the step's images."""
    view: int


@dataclass(frozen=True)
class Answer:
    """What became of a chunk: reasons why images could not be decoded, by place in the chunk."""

    corrupt: dict[int, str]
    error: str | None = None
    """Set if an image could not be read at all; then none of the chunk is good."""


def decode_chunk(
    out: Tensor, source: ImageSource, prepare: Preparation, seed: int, chunk: Chunk
) -> Answer:
    """Decode a chunk into `out`, uint8, shape (n, size, size, 3).

    An image that is damaged is left out and named in the answer. One that cannot be *read* is
    another matter: a disk or a network that fails for a while must not change what a run trains
    on, so that is an error.
    """
    corrupt: dict[int, str] = {}
    for place, sample in enumerate(chunk.samples):
        try:
            data = source.read(sample)
        except Exception as error:  # whatever a source meets; it has to get to the main process
            known = isinstance(error, ConadvError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            return Answer({}, text if known else f"{source.where(sample)}: {text}")
        try:
            out[place] = prepare(data, seed, chunk.step, chunk.start + place, chunk.view)
        except DecodeError as error:
            corrupt[place] = str(error)
    return Answer(corrupt)

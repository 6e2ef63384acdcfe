"""A few images, decoded in one go: what a worker process is told, does and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from conadv.data.decoding.decode import DecodeError
from conadv.data.decoding.policy import Preparation
from conadv.errors import ConadvError


class EncodedImages(Protocol):
    """Encoded images with labels; `conadv.data.sources` has several kinds.

    With worker processes it has to be picklable, unless they are forked.
    """

    @property
    def labels(self) -> Tensor:
        """Labels of the images, int64, shape (N,), on the CPU."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> bytes:
        """One image as it is stored."""
        ...

    def where(self, index: int) -> str:
        """Where an image lies, for messages."""
        ...


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
    out: Tensor, source: EncodedImages, prepare: Preparation, seed: int, chunk: Chunk
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

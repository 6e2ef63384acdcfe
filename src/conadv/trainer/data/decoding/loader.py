"""Images from a source, decoded ahead in worker processes, the same whatever their number."""

import sys
import weakref
from collections.abc import Collection, Sequence
from typing import Self

import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.dataset import check_positions
from conadv.trainer.data.decoding.policy import Preparation
from conadv.trainer.data.decoding.pool import CLOSED, Job, Order, Pool
from conadv.trainer.data.decoding.request import (
    Chunk,
    Decoded,
    Pending,
    Request,
    decode_chunk,
)
from conadv.trainer.data.sources.source import ImageSource


class ImageLoader:
    """Decodes what is asked for, in any order and ahead of time.

    What a request gives is a function of its arguments, the seed, the source and the pipeline.
    Use it in a ``with`` block, or call `close`.

    ```python
    with ImageLoader(source, Pipeline(224), workers=8, seed=1) as loader:
        ahead = [loader.request(samples, step=0, start=0)]
        images, labels, _ = ahead.pop(0).result()
    ```

    Args:
        source: the images, for instance one of `conadv.trainer.data.sources`.
        pipeline: what is done to them: a `Pipeline` or a `CentreCrop`.
        workers: processes that decode. 0: none, `Request.result` does it.
        seed: of the run.
        max_corrupt: share of damaged images among those read so far; more raise DataError.
        at_least: but never at fewer damaged ones than this.
        chunk: images that a worker decodes in one go; changes no result.
        pin: put results into pinned memory, from where they go to a GPU without waiting.
        timeout: seconds to wait for a result; None: for ever.
        start_method: of `multiprocessing`; None: forkserver on Linux, spawn elsewhere, which ask
            for a source that can be pickled and for a script with a main guard.

    Raises:
        ValueError: a negative number of workers, or a share that is none.
        DataError: there is too little shared memory.
    """

    def __init__(
        self,
        source: ImageSource,
        pipeline: Preparation,
        workers: int,
        seed: int,
        *,
        max_corrupt: float = 0.001,
        at_least: int = 10,
        chunk: int = 8,
        pin: bool = False,
        timeout: float | None = None,
        start_method: str | None = None,
    ) -> None:
        if workers < 0 or chunk < 1:
            raise ValueError(f"workers={workers}, chunk={chunk}: give 0 or more, and 1 or more.")
        self._job = Job(source, pipeline, seed, chunk)
        self._labels = source.labels
        self._pin = pin
        self._timeout = timeout
        self._closed = False
        self.counts = ImageCounts(max_corrupt, at_least)
        """Images read and damaged ones; counts what `Request.result` has returned."""
        self._pool: Pool | None = None
        if workers:
            method = start_method or ("forkserver" if sys.platform == "linux" else "spawn")
            self._pool = Pool(self._job, workers, method)
            # Also at the end of the program, and when nobody holds the loader any more.
            self._finalizer = weakref.finalize(self, self._pool.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Requests that are not done fail. Repeatable."""
        self._closed = True
        if self._pool is not None:
            self._finalizer()

    def request(self, samples: Tensor, step: int, start: int, view: int = 0) -> Request:
        """Ask for a micro-batch, or any other images of a step; returns at once.

        Args:
            samples: positions in the source, int64, shape (N,), on the CPU, N at least 1.
            step: the training step, from 0.
            start: place of the first sample among the step's images.
            view: another number below 16 gives a further, independent view.

        Raises:
            ValueError: samples that do not exist.
        """
        _check_samples(samples, len(self._labels))
        places, size = samples.tolist(), self._job.chunk
        chunks = {
            first: Chunk(tuple(places[first : first + size]), step, start + first, view)
            for first in range(0, len(places), size)
        }
        pending = Pending(self._empty(len(places)), len(chunks))
        if self._closed:
            pending.fail(CLOSED)
        elif self._pool is not None:
            orders = [Order(c, pending.adder(at), pending.fail) for at, c in chunks.items()]
            self._pool.submit(orders)
        return Request(pending, lambda: self._finish(pending, samples, chunks))

    def _finish(self, pending: Pending, samples: Tensor, chunks: dict[int, Chunk]) -> Decoded:
        if self._closed and self._pool is None and not pending.ready:
            pending.fail(CLOSED)
        elif self._pool is None and not pending.ready:
            job = self._job
            for at, chunk in chunks.items():
                out = pending.pixels[at : at + len(chunk.samples)]
                answer = decode_chunk(out, job.source, job.prepare, job.seed, chunk)
                pending.add(at, out, answer)
        pending.wait(self._timeout)
        try:
            return self._assemble(pending.pixels, samples, pending.corrupt)
        except DataError as error:
            pending.fail(str(error))  # asked again it says the same, and counts nothing twice
            raise

    def _assemble(self, pixels: Tensor, samples: Tensor, corrupt: dict[int, str]) -> Decoded:
        where = self._job.source.where
        named = [(where(int(samples[place])), why) for place, why in sorted(corrupt.items())]
        self.counts.add(len(samples), named)
        if len(corrupt) == len(samples):
            raise DataError(
                f"All {len(samples)} images of a request are damaged, the first is {named[0][0]} "
                f"({named[0][1]}). Fetch the data again."
            )
        labels = self._labels[samples]
        instead = substitutes(len(samples), corrupt)
        for place, other in instead.items():
            pixels[place], labels[place] = pixels[other], labels[other]
        return Decoded(pixels.permute(0, 3, 1, 2), labels, tuple(instead))

    def _empty(self, count: int) -> Tensor:
        side = self._job.prepare.size
        return torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=self._pin)


def _check_samples(samples: Tensor, images: int) -> None:
    if samples.dtype != torch.int64 or samples.ndim != 1 or len(samples) == 0:
        raise ValueError(
            f"samples are {samples.dtype} of shape {tuple(samples.shape)}: give int64 of shape "
            "(N,), at least one."
        )
    check_positions(samples, images)


NAMED = 100
"""Damaged images that are kept by name."""


def substitutes(count: int, corrupt: Collection[int]) -> dict[int, int]:
    """Find for each damaged place of a request the next good one, going round at the end.

    Args:
        count: images in the request.
        corrupt: places that are damaged, fewer than all.
    """
    bad = set(corrupt)
    found = {}
    for place in sorted(bad):
        other = place
        while other in bad:
            other = (other + 1) % count
        found[place] = other
    return found


class ImageCounts:
    """Counts images read and damaged ones, and says when it is enough.

    Args:
        max_share: damaged images among those read so far; more raise.
        at_least: but never at fewer than so many.

    Raises:
        ValueError: a share outside [0, 1], or `at_least` below 1.
    """

    def __init__(self, max_share: float = 0.001, at_least: int = 10) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_corrupt={max_share}: give a share, 0 to 1.")
        if at_least < 1:
            raise ValueError(f"at_least={at_least}: give 1 or more.")
        self.max_share = max_share
        self.at_least = at_least
        self.read = 0
        self.corrupt = 0
        self.named: dict[str, str] = {}
        """Where damaged images lie, and what is wrong with them; at most `NAMED`."""

    def add(self, read: int, corrupt: Sequence[tuple[str, str]]) -> None:
        """Count images of a request.

        Args:
            read: all of them.
            corrupt: for each damaged one where it lies, and why it cannot be decoded.

        Raises:
            DataError: too many are damaged.
        """
        self.read += read
        self.corrupt += len(corrupt)
        for where, why in corrupt:
            if len(self.named) < NAMED:
                self.named.setdefault(where, why)
        if corrupt and self.corrupt >= self.at_least:
            if self.corrupt > self.max_share * self.read:
                raise DataError(self._too_many())

    def _too_many(self) -> str:
        first = [f"{where} ({why})" for where, why in [*self.named.items()][:3]]
        return (
            f"{self.corrupt:,} of {self.read:,} images read cannot be decoded, more than "
            f"{self.max_share:.2%}: {'; '.join(first)}{' ...' if len(self.named) > 3 else '.'} "
            "Fetch the data again, or raise max_corrupt."
        )

"""Reading ahead: what a schedule has seen of the batches to come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


class ReadAhead:
    """The batch of `ahead` rounds later, from a loader that is read that far ahead or by hand."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.future: tuple[Tensor, Any] | None = None
        """(images, labels) of `ahead` rounds later, or None where nobody showed them."""
        self._reading = False
        self._fresh = False
        """Whether a batch was handed over, or shown, since the last round ended."""

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield what the loader yields, `ahead` batches after it was read."""
        if self.ahead == 0:
            yield from loader
            return
        queue: deque[Any] = deque()
        self._reading = True
        try:
            for batch in loader:
                if not isinstance(batch, list | tuple) or len(batch) < 2:
                    raise ValueError(
                        f"batches() reads ahead and was given a {type(batch).__name__}: the loader "
                        "must yield (images, labels), or use peek(images, labels) yourself."
                    )
                queue.append(batch)
                if len(queue) > self.ahead:
                    self.show((batch[0], batch[1]))
                    yield queue.popleft()
            while queue:
                self.show(None)
                yield queue.popleft()
        finally:
            self._reading = False
            self.future = None

    def show(self, future: tuple[Tensor, Any] | None) -> None:
        """Say what this round's future batch is."""
        self.future, self._fresh = future, True

    def begin_round(self) -> None:
        """Raise RuntimeError for a second round on one batch of `batches`."""
        if self._reading and not self._fresh:
            raise RuntimeError(
                "A second round on one batch of batches(): copies are prepared for each "
                "batch that it reads ahead. Give batches() a loader of the micro-batches."
            )

    def remember(self) -> tuple[Any, bool]:
        """What `restore` puts back."""
        return self.future, self._fresh

    def restore(self, remembered: tuple[Any, bool]) -> None:
        """The round that has ended is begun anew."""
        self.future, self._fresh = remembered

    def end_round(self) -> None:
        """What was shown served one round."""
        self.future, self._fresh = None, False

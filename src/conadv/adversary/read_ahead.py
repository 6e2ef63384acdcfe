"""Reading ahead: what a schedule has seen of the batches to come, and whether they came."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conadv._tree import map_tensors

LOOK_FIRST, LOOK_EVERY = 3, 100
"""Rounds in which images are compared, the first ones and now and then: on a GPU it is a wait."""
ROWS, PLACES = 8, 4
"""Images, and places along each dimension of them, that a sample is of."""

Future = tuple[Tensor, Any]


class Sample(NamedTuple):
    """What a batch is known by."""

    shape: tuple[int, ...]
    values: Tensor


def sample(images: Tensor) -> Sample:
    """A few values that tell a batch from others, in float32, and its shape."""
    steps = (ROWS, *[PLACES] * (images.ndim - 1))
    places = [
        slice(None, None, -(-size // step)) for size, step in zip(images.shape, steps, strict=True)
    ]
    return Sample(tuple(images.shape), images.detach()[tuple(places)].to(torch.float32, copy=True))


def same_batch(one: Sample, other: Sample) -> bool:
    """Whether two samples are of one batch, up to a change of its type. May wait for a GPU."""
    if one.shape != other.shape:
        return False
    left, right = one.values, other.values
    if left.device != right.device:
        left, right = left.cpu(), right.cpu()
    return torch.allclose(left, right, rtol=1e-2, atol=1e-2, equal_nan=True)


@dataclass
class Handed:
    """A batch that `batches` has handed over, and the one of `ahead` rounds later."""

    images: Tensor
    future: Future | None


class ReadAhead:
    """The batch of `ahead` rounds later, from a loader that is read that far ahead or by hand.

    Each batch that is handed over remembers what follows it, and each that was attacked is known
    by a sample of its values: so a consumer may prefetch, and a loop may leave batches out.
    """

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.future: Future | None = None
        """(images, labels) of `ahead` rounds later, or None where nobody showed them."""
        self.rounds = 0
        """That have ended since anything was first asked of it."""
        self.ever_shown = False
        self.expected: deque[Sample | None] = deque([None] * ahead)
        """The batches that were attacked for the next `ahead` rounds."""
        self._handed: deque[Handed] = deque()
        self._reader: object | None = None
        self.was_left = False
        """Whether `batches` was left early: then other images are no wonder."""
        self._since = 0  # rounds since the order of batches may have changed

    # -- what comes in -------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield what the loader yields, `ahead` batches after it was read."""
        if self.ahead == 0:
            yield from loader
            return
        queue: deque[Any] = deque()
        self._handed.clear()
        self.was_left |= self._reader is not None
        self._reader = reader = object()
        self._since, left = 0, True
        try:
            for batch in _kept(loader, self.ahead):
                queue.append(batch)
                if len(queue) > self.ahead:
                    yield self._hand_over(queue.popleft(), (batch[0], batch[1]))
            while queue:
                yield self._hand_over(queue.popleft(), None)
            left = False
        finally:
            if self._reader is reader:  # and not a later loop
                self._reader = None
                self.was_left |= left

    def _hand_over(self, batch: Any, future: Future | None) -> Any:
        self.ever_shown = True
        self._handed.append(Handed(batch[0], future))
        return batch

    def show(self, future: Future) -> None:
        """Say what this round's future batch is."""
        self.future, self.ever_shown = future, True

    # -- a round -------------------------------------------------------------------------------

    def begin_round(self, images: Tensor) -> int:
        """Find the round's batch among those handed over; how many before it were left out.

        Raises:
            RuntimeError: it is not among them.
        """
        if self._reader is None and not self._handed:
            return 0
        certain = len(self._handed) == 1 and not self._looks(images)
        found = None if certain else sample(images)
        for number, handed in enumerate(self._handed):
            if handed.images is images or found is None or same_batch(sample(handed.images), found):
                for _ in range(number):
                    self._handed.popleft()
                self.future = handed.future
                return number
        if self._reader is None:  # what is left there was never used
            self._handed.clear()
            return 0
        raise RuntimeError(
            f"Images of shape {tuple(images.shape)} are no batch that batches() handed over and "
            "that had no round yet. Copies are prepared for each batch that it reads ahead, "
            "as it is: give batches() a loader of the micro-batches, in the order of the rounds, "
            "with everything done to the images that is done to them; a second round on one batch "
            "has no copies."
        )

    def is_foreign(self, images: Tensor) -> bool:
        """Whether what is pending for this round was made from other images."""
        expected = self.expected[0] if self.expected else None
        if expected is None or not self._looks(images):
            return False
        found = sample(images)
        # Another number or size of images is reported by what is put together from them.
        return (self.was_left or found.shape == expected.shape) and not same_batch(expected, found)

    def _looks(self, images: Tensor) -> bool:
        on_host = images.device.type == "cpu"
        return on_host or self._since < self.ahead + LOOK_FIRST or self._since % LOOK_EVERY == 0

    def end_round(self, *, attacked: bool = False) -> None:
        """The round's batch has been used; whether its future batch was attacked."""
        future, self.future = self.future, None
        if self._handed:
            self._handed.popleft()
        self.shift(future[0] if attacked and future is not None else None)
        self._since += 1
        self.rounds += 1
        if self._since > self.ahead:
            self.was_left = False

    def shift(self, attacked: Tensor | None = None) -> None:
        """One round further: what was attacked in it is expected `ahead` rounds later."""
        if self.ahead:
            self.expected.popleft()
            self.expected.append(None if attacked is None else sample(attacked))

    # -- state ---------------------------------------------------------------------------------

    def remember(self) -> tuple[Any, ...]:
        """What `restore` puts back."""
        return self.future, list(self.expected), list(self._handed)[:1], self._since, self.rounds

    def restore(self, remembered: tuple[Any, ...]) -> None:
        """The round that has ended is begun anew."""
        self.future, expected, handed, self._since, self.rounds = remembered
        self.expected = deque(expected)
        self._handed.extendleft(handed)

    def state_dict(self) -> dict[str, Any]:
        """What is expected of the next rounds."""
        return {
            "expected": [
                None if one is None else {"shape": list(one.shape), "values": one.values.cpu()}
                for one in self.expected
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; a state without samples expects nothing."""
        expected = [
            None if one is None else Sample(tuple(one["shape"]), one["values"])
            for one in state.get("expected", [])
        ]
        self.expected = deque(expected if len(expected) == self.ahead else [None] * self.ahead)
        self._since = 0


def _kept(loader: Iterable[Any], ahead: int) -> Iterator[Any]:
    """The loader's batches, copied where it would fill them anew while they are being kept.

    Whether it does is known after `ahead` + 1 batches: until then all are copied.
    """
    first: list[Any] | None = []
    copied = False
    for batch in loader:
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise ValueError(
                f"batches() reads ahead and was given a {type(batch).__name__}: the loader "
                "must yield (images, labels), or use peek(images, labels) yourself."
            )
        yield map_tensors(Tensor.clone, batch) if copied or first is not None else batch
        if first is not None:
            first.append(batch)
            places = {b[0].data_ptr() for b in first if isinstance(b[0], Tensor)}
            if len(places) < len(first):
                copied, first = True, None
            elif len(first) > ahead:
                first = None

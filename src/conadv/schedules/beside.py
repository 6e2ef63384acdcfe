"""Work for a later round on a stream of its own, beside the training pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

# A recipe looks schedules up without torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


class Beside(Generic[T]):
    """Something that a round makes before its training pass and takes after its backward.

    Args:
        tensors: those of what is made, which the training pass's stream reads later.
    """

    def __init__(self, tensors: Callable[[T], Iterable[Tensor]]) -> None:
        self._tensors = tensors
        self._made: tuple[object, T, torch.cuda.Event] | None = None

    def begin(
        self,
        current: object,
        side: torch.cuda.Stream | None,
        device: torch.device,
        make: Callable[[], T],
    ) -> None:
        """Make it on the stream `side`, or with None not yet.

        Both passes read the weights of this step; neither waits for the other.
        """
        self._made = None  # of a round that was never collected
        if side is None:
            return
        import torch

        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._made = current, make(), side.record_event()

    def take(self, current: object, device: torch.device, make: Callable[[], T]) -> T:
        """What this round has made, or makes now."""
        found, self._made = self._made, None
        if found is None or found[0] is not current:
            return make()
        import torch

        _, made, event = found
        stream = torch.cuda.current_stream(device)
        stream.wait_event(event)
        for tensor in self._tensors(made):  # their memory must outlive this stream's reads
            tensor.record_stream(stream)
        return made

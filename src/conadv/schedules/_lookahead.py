"""The paper's schedule: copies made with weights that are tau steps old."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import torch

from conadv._nested import map_tensors, rows
from conadv.schedules._base import Copies, Round, Schedule, Scheduled


class Lookahead(Schedule):
    """ConAdv (ICLR 2022, Algorithm 1): at step t attack the batch of step t + tau.

    The attack reads the weights of step t, so nothing waits for it: on a GPU it runs on a stream
    of its own beside the training pass, on many devices while gradients are being all-reduced.
    It must only be done before the weights change. 8F per step at share 1, one gradient in
    sequence.

    The future batches come from ``adversary.batches(loader)`` or ``adversary.peek(...)``. The
    first tau rounds have no copies and train on clean images alone; so does a round whose future
    batch was never seen. tau = 0 is `Sequential`.

    Args:
        tau: staleness in rounds (calls of loss), 0 or more.
        share: see `Schedule`.
        weight: see `Schedule`.
        stream: on a CUDA device, attack on a second stream beside the forward and backward.

    Raises:
        ValueError: tau is negative or not a whole number.
    """

    name: ClassVar[str] = "lookahead"

    def __init__(
        self,
        tau: int = 1,
        share: Scheduled = 1.0,
        weight: Scheduled | None = None,
        stream: bool = True,
    ) -> None:
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 0:
            raise ValueError(f"tau={tau!r}: give a whole number of rounds, 1 or more.")
        super().__init__(share, weight)
        self.tau = tau
        self.reads_ahead = tau
        self.stream = stream
        self._pending: deque[Copies | None] = deque([None] * tau)
        self._early: tuple[Copies | None, torch.cuda.Event] | None = None

    def copies(self, round: Round) -> list[Copies]:
        """What was made for this round tau rounds ago."""
        side = round.side_stream() if self.stream and self.tau else None
        if side is not None and self._early is None:
            # Both passes read the weights of this step; neither waits for the other.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                made = self._attack(round, *(round.future or (None, None)))
                self._early = (made, side.record_event())
        if self.tau == 0:
            made = self._attack(round, round.images, round.labels)
            return [made] if made is not None else []
        due = self._pending[0]
        return [due] if due is not None else []

    def collect(self, round: Round) -> None:
        """Attack the batch of tau rounds later, at this round's weights."""
        if self.tau == 0:
            return
        if self._early is not None:
            made, event = self._early
            self._early = None
            current = torch.cuda.current_stream()
            current.wait_event(event)
            if made is not None:
                # Made on the other stream: its memory must outlive this stream's reads.
                for tensor in (made.images, made.origins):
                    if tensor is not None:
                        tensor.record_stream(current)
        else:
            made = self._attack(round, *(round.future or (None, None)))
        self._pending.popleft()
        self._pending.append(made)

    def _attack(self, round: Round, images: Any, labels: Any) -> Copies | None:
        if images is None:
            return None
        total = len(images)
        count = self.count(total, round.progress)
        if count == 0:
            return None
        device = round.images.device
        origins = images[:count].detach().to(device, non_blocking=True)
        labels = map_tensors(
            lambda tensor: tensor.to(device, non_blocking=True), rows(labels, 0, count, total)
        )
        perturbed = round.perturb(origins, labels)
        round.report_zero_share(perturbed.zero_share)
        return Copies(perturbed.images, labels, origins if round.keep_origins else None)

    def skip(self) -> None:
        """Drop this round's copies and make none."""
        self._early = None
        if self.tau:
            self._pending.popleft()
            self._pending.append(None)

    def state_dict(self) -> dict[str, Any]:
        """The copies of the next tau rounds."""
        return {"pending": [c.state_dict() if c is not None else None for c in self._pending]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the copies of the next tau rounds.

        Raises:
            ValueError: they were made for another tau.
        """
        pending = state["pending"]
        if len(pending) != self.tau:
            raise ValueError(
                f"The state holds copies for tau={len(pending)}, this schedule has tau={self.tau}: "
                "continue with the tau that the run began with."
            )
        self._pending = deque(
            Copies.from_state_dict(c, device) if c is not None else None for c in pending
        )

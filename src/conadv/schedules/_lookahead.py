"""The paper's schedule: copies made with weights that are tau steps old."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import torch
from torch import Tensor

from conadv._checks import check_images
from conadv._loop_checks import check_rows
from conadv._nested import map_tensors, rows
from conadv.schedules._base import Copies, Round, Schedule, Scheduled, own_labels


class Lookahead(Schedule):
    """ConAdv (ICLR 2022, Algorithm 1): at step t attack the batch of step t + tau.

    The attack reads the weights of step t, so nothing waits for it: on a GPU it runs on a stream
    of its own beside the training pass, on many devices while gradients are being all-reduced.
    It must only be done before the weights change. 8F per step at share 1, one gradient in
    sequence.

    The future batches come from ``adversary.batches(loader)`` or ``adversary.peek(...)``. The
    first tau rounds have no copies and train on clean images alone; so does a round whose batch
    was not seen tau rounds before. Share and weight are those of the round that attacks; a share
    or weight that has fallen to zero since drops the copies. tau = 0 is `Sequential`.

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
        self._early: tuple[Round, Copies | None, torch.cuda.Event] | None = None

    def copies(self, round: Round) -> list[Copies]:
        """What was made for this round tau rounds ago."""
        self._early = None  # of a round that was never collected
        side = round.side_stream() if self.stream and self.tau and round.future else None
        if side is not None:
            # Both passes read the weights of this step; neither waits for the other.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                made = self._attack(round, round.future)
                self._early = (round, made, side.record_event())
        if self.tau == 0:
            made = self._attack(round, (round.images, round.labels))
            return [made] if made is not None else []
        due = self._pending[0] if self.active(round.progress) else None
        return [due] if due is not None else []

    def collect(self, round: Round) -> None:
        """Attack the batch of tau rounds later, at this round's weights."""
        if self.tau == 0:
            return
        if self._early is not None and self._early[0] is round:
            _, made, event = self._early
            current = torch.cuda.current_stream()
            current.wait_event(event)
            if made is not None:
                # Made on the other stream: its memory must outlive this stream's reads.
                for tensor in (made.images, made.origins):
                    if tensor is not None:
                        tensor.record_stream(current)
                map_tensors(lambda tensor: tensor.record_stream(current), made.labels)
        else:
            made = self._attack(round, round.future)
        self._early = None
        self._pending.popleft()
        self._pending.append(made)

    def _attack(self, round: Round, batch: tuple[Tensor, Any] | None) -> Copies | None:
        if batch is None:
            return None
        images, labels = batch
        check_images(images)
        check_rows(images, labels)
        total = len(images)
        count = self.count(total, round.progress)
        if count == 0:
            return None
        device = round.images.device
        origins = images[:count].detach().to(device, non_blocking=True)
        labels = map_tensors(
            lambda tensor: tensor.to(device, non_blocking=True),
            own_labels(labels, count, total) if self.tau else rows(labels, 0, count, total),
        )
        perturbed = round.perturb(origins, labels)
        round.report_zero_share(perturbed.zero_share)
        # With tau = 0 they are this round's own images, kept by it anyway.
        if self.tau and round.keep_origins:
            kept: Tensor | None = origins.clone()
        else:
            kept = None if self.tau else origins
        return Copies(perturbed.images, labels, kept)

    def skip(self) -> None:
        """Drop this round's copies and make none."""
        self._early = None
        if self.tau:
            self._pending.popleft()
            self._pending.append(None)

    def idle(self) -> None:
        """Like `skip`: the copies for this round have no images to go with."""
        self.skip()

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

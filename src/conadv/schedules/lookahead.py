"""The paper's schedule: copies made with weights that are tau steps old."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conadv._tree import map_tensors, rows
from conadv.attack.checks import check_images, check_rows
from conadv.schedules.base import Copies, Round, Schedule, Scheduled, own_labels
from conadv.schedules.packed_signs import PackedSigns


@dataclass
class PendingSigns:
    """The signs of a step from the first images of a batch, which comes with its round."""

    signs: PackedSigns
    total: int | None
    """Images of that batch; None: not known, in states of development versions."""
    seed: int | None = None
    """Where the attack draws radii or starts: of their stream, which is drawn from again."""

    def copies(self, round: Round) -> Copies:
        """The copies that the signs make of the round's images.

        Raises:
            RuntimeError: the round's batch cannot be the one that was attacked.
        """
        total = len(round.images)
        images = round.images.detach()
        signs = self.signs.unpack(torch.promote_types(images.dtype, torch.float32), images.device)
        origins = images[: len(signs)]
        if origins.shape != signs.shape or self.total not in (None, total):
            of = "" if self.total is None else f" of {self.total} images"
            raise RuntimeError(
                f"Images of shape {tuple(signs.shape)}, from a batch{of}, were attacked for this "
                f"round, whose images have shape {tuple(images.shape)}: what batches() reads "
                "ahead, or peek() is shown, must be the very batch of tau rounds later."
            )
        # The step that the attack took itself, so that the result is the same to the bit.
        start, scales = origins, None
        if self.seed is not None:
            again = torch.Generator(images.device).manual_seed(self.seed)
            scales = round.attack.draw_scales(len(origins), again, images.device)
            start = round.attack.start(origins, again, scales)
        stepped = round.attack.ascend(start, origins, signs, scales)
        return Copies(stepped.images, rows(round.labels, 0, len(signs), total), origins)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {**self.signs.state_dict(), "total": self.total, "seed": self.seed}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> PendingSigns:
        """The inverse of `state_dict`, on `device`."""
        signs = PackedSigns.from_state_dict(state, device)
        return cls(signs, state.get("total"), state.get("seed"))


Pending = Copies | PendingSigns | None
"""What a later round needs; None where nothing was made for it."""


class Lookahead(Schedule):
    """ConAdv (ICLR 2022, Algorithm 1): at step t attack the batch of step t + tau.

    The attack reads the weights of step t, so nothing waits for it: on a GPU it runs on a stream
    of its own beside the training pass, on many devices while gradients are being all-reduced.
    It must only be done before the weights change. 8F per step at share 1, one gradient in
    sequence.

    What is pending of an L-inf attack of one step is one sign bit per value: the copies are put
    together when their round comes, from the images of that round, which are the ones that were
    attacked, and from the same random starts, drawn again. Of other attacks the copies themselves
    are kept. A state that goes on on another kind of device (CPU, GPU) gets other random starts
    and radii.

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
        self._pending: deque[Pending] = deque([None] * tau)
        self._early: tuple[Round, Pending, torch.cuda.Event] | None = None

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
            fresh = self._attack_now(round)
            return [fresh] if fresh is not None else []
        due = self._pending[0] if self.active(round.progress) else None
        if isinstance(due, PendingSigns):
            due = due.copies(round)
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
                for tensor in _tensors(made):
                    tensor.record_stream(current)
        else:
            made = self._attack(round, round.future)
        self._early = None
        self._pending.popleft()
        self._settle()
        self._pending.append(made)

    def _settle(self) -> None:
        """Free what the device has found to be unneeded; only the newest are still undecided."""
        for entry in reversed(self._pending):
            if isinstance(entry, PendingSigns):
                if entry.signs.answer is None:
                    return
                entry.signs.settle()

    def _attack_now(self, round: Round) -> Copies | None:
        """With tau = 0: the round's own images."""
        total = len(round.images)
        count = self.count(total, round.progress)
        if count == 0:
            return None
        origins = round.images[:count].detach()
        labels = rows(round.labels, 0, count, total)
        perturbed = round.perturb(origins, labels)
        round.report_zero_share(perturbed.zero_share)
        return Copies(perturbed.images, labels, origins)

    def _attack(self, round: Round, batch: tuple[Tensor, Any] | None) -> Pending:
        """Attack a later round's batch; what has to be kept of the copies."""
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
            lambda tensor: tensor.to(device, non_blocking=True), own_labels(labels, count, total)
        )
        perturbed = round.perturb(origins, labels)
        round.report_zero_share(perturbed.zero_share)
        if round.attack.is_one_sign_step and perturbed.direction is not None:
            seed = perturbed.seed if round.attack.draws_copies else None
            return PendingSigns(PackedSigns.of(perturbed.direction), total, seed)
        kept = origins.clone() if round.keep_origins else None
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
        """What is pending for the next tau rounds."""
        self._settle()
        return {"pending": [c.state_dict() if c is not None else None for c in self._pending]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what is pending for the next tau rounds, also whole copies of any attack.

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
            _restored(entry, device) if entry is not None else None for entry in pending
        )


def _restored(entry: dict[str, Any], device: torch.device) -> Copies | PendingSigns:
    kind = PendingSigns if "bits" in entry else Copies
    return kind.from_state_dict(entry, device)


def _tensors(made: Copies | PendingSigns) -> list[Tensor]:
    if isinstance(made, PendingSigns):
        return made.signs.tensors()
    found: list[Tensor] = []
    map_tensors(found.append, (made.images, made.labels, made.origins))
    return found

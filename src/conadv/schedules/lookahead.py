"""The paper's schedule: copies made with weights that are tau steps old."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from conadv._tree import map_tensors
from conadv.schedules.base import Copies, Round, Schedule, Scheduled, own_labels
from conadv.schedules.beside import Beside
from conadv.schedules.facts import Setting, Work
from conadv.schedules.sequential import attacked_now

# What brings torch is imported where it is needed: a recipe looks the class up without.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from conadv.schedules.pending_signs import PendingSigns

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
    settings: ClassVar[Mapping[str, Setting]] = {
        "tau": Setting(
            1,
            "Steps that the copies' weights are old.",
            low=0,
            high=64,
            in_steps=True,
            same_as={0: "sequential"},
        )
    }
    queues_rounds: ClassVar[bool] = True

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
        self._beside: Beside[Pending] = Beside(_tensors)

    @property
    def label(self) -> str:
        """Label with tau, where it is not 1."""
        return self.name if self.tau == 1 else f"{self.name}, tau {self.tau}"

    def work(self, share: float, attack_steps: int = 1) -> Work:
        """Each copy is attacked, and later trained on."""
        return Work(copies=share, attacked=attack_steps * share)

    def pending_bytes(self, signs: bool) -> float:
        """The copies of tau rounds: a bit for each value's sign, or whole in single precision."""
        return self.reads_ahead * (1 / 8 if signs else 4.0)

    def copies(self, current: Round) -> list[Copies]:
        """What was made for this round tau rounds ago."""
        side = current.side_stream() if self.stream and self.tau and current.future else None
        device = current.images.device
        self._beside.begin(current, side, device, lambda: self._attack(current, current.future))
        if self.tau == 0:
            return attacked_now(self, current)
        due = self._pending[0] if self.active(current.progress) else None
        return [due.copies(current)] if due is not None else []

    def collect(self, current: Round) -> None:
        """Attack the batch of tau rounds later, at this round's weights."""
        if self.tau == 0:
            return
        device = current.images.device
        made = self._beside.take(current, device, lambda: self._attack(current, current.future))
        self._pending.popleft()
        self._drop_unneeded()
        self._pending.append(made)

    def _drop_unneeded(self) -> None:
        """Free what the device has found to be unneeded."""
        for entry in self._pending:
            if entry is not None:
                entry.drop_unneeded()

    def _attack(self, current: Round, batch: tuple[Tensor, Any] | None) -> Pending:
        """Attack a later round's batch; what has to be kept of the copies."""
        if batch is None:
            return None
        from conadv.attack.checks import check_images, check_rows
        from conadv.schedules.packed_signs import PackedSigns
        from conadv.schedules.pending_signs import PendingSigns

        images, labels = batch
        check_images(images)
        check_rows(images, labels)
        total = len(images)
        count = self.count(total, current.progress)
        if count == 0:
            return None
        device = current.images.device
        origins = images[:count].detach().to(device, non_blocking=True)
        labels = map_tensors(
            lambda tensor: tensor.to(device, non_blocking=True), own_labels(labels, count, total)
        )
        perturbed = current.perturb(origins, labels)
        current.report_zero_share(perturbed.zero_share)
        if current.attack.is_one_sign_step and perturbed.direction is not None:
            seed = perturbed.seed if current.attack.draws_copies else None
            return PendingSigns(PackedSigns.of(perturbed.direction), total, seed)
        kept = origins.clone() if current.keep_origins else None
        return Copies(perturbed.images, labels, kept)

    def skip(self) -> None:
        """Drop this round's copies and make none."""
        self._early = None
        if self.tau:
            self._pending.popleft()
            self._pending.append(None)

    def idle(self) -> None:
        """Leave out the round, like `skip`: the copies for it have no images to go with."""
        self.skip()

    def state_dict(self) -> dict[str, Any]:
        """What is pending for the next tau rounds."""
        self._drop_unneeded()
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


def _tensors(made: Pending) -> Iterable[Tensor]:
    return made.tensors() if made is not None else ()


def _restored(entry: dict[str, Any], device: torch.device) -> Copies | PendingSigns:
    from conadv.schedules.pending_signs import PendingSigns

    kind = PendingSigns if "bits" in entry else Copies
    return kind.from_state_dict(entry, device)

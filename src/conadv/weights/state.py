"""What a `WeightAdversary` is saved as and continued from."""

from collections.abc import Mapping
from typing import Any

from conadv.adversary import Adversary
from conadv.adversary.read_ahead import ReadAhead
from conadv.weights.passes import Passes
from conadv.weights.pending import Pending
from conadv.weights.round import RoundState
from conadv.weights.schedule import WeightSchedule


class Continued:
    """The state of a `WeightAdversary`: pending gradients, counts, and its adversary's own."""

    adversary: Adversary
    schedule: WeightSchedule
    progress: float
    images: int
    _compute: float
    _micro_batches: int
    _passes: Passes
    _pending: Pending
    _ahead: ReadAhead
    _round: RoundState | None

    @property
    def seed(self) -> int:
        """Seed of the random streams."""
        return self._passes.streams.seed

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, pending gradients included.

        Tensors, numbers, strings, lists and dicts only: loads with ``weights_only=True``. Take it
        between two rounds.
        """
        return {
            "version": 1,
            "schedule": self.schedule.name,
            "state": self._pending.state_dict(),
            "ahead": self._ahead.state_dict(),
            "progress": self.progress,
            "compute": self._compute,
            "images": self.images,
            "micro_batches": self._micro_batches,
            "seed": self.seed,
            "adversary": self.adversary.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; what is pending goes to the model's device.

        Raises:
            ValueError: the state is of another schedule, of other parameters, or of another
                version of the library.
        """
        if state.get("version") != 1 or "micro_batches" not in state:
            raise ValueError(
                f"The state has version {state.get('version')!r} and holds "
                f"{', '.join(sorted(state))}: this release reads version 1 of WeightAdversary."
            )
        if state["schedule"] != self.schedule.name:
            raise ValueError(
                f"The state is of schedule {state['schedule']!r}, this adversary runs "
                f"{self.schedule.name!r}: continue with the schedule that the run began with."
            )
        self._pending.load_state_dict(state["state"])
        self._ahead.load_state_dict(state.get("ahead", {}))
        self.adversary.load_state_dict(state["adversary"])
        self.progress = float(state["progress"])
        self._compute = float(state["compute"])
        self.images = int(state["images"])
        self._micro_batches = int(state["micro_batches"])
        self._passes.streams.seed = int(state["seed"])
        self._round = None

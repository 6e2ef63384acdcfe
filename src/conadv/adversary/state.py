"""What an adversary is saved as and continued from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conadv.adversary.round import RoundState, Streams
from conadv.attack.forward import BareForward
from conadv.schedules import Schedule


class Continued:
    """The state of an `Adversary`: pending copies and counts."""

    schedule: Schedule
    progress: float
    compute: float
    images: int
    _bare: BareForward
    _streams: Streams
    _rounds: int
    _round: RoundState | None

    @property
    def seed(self) -> int:
        """Of the attack's own random stream."""
        return self._streams.seed

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, pending copies included.

        Tensors, numbers, strings, lists and dicts only: loads with ``weights_only=True``. Take it
        between two rounds.
        """
        return {
            "version": 1,
            "schedule": self.schedule.name,
            "state": self.schedule.state_dict(),
            "progress": self.progress,
            "compute": self.compute,
            "images": self.images,
            "rounds": self._rounds,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; pending copies go to the model's device.

        Raises:
            ValueError: the state is of another schedule, or of another version of the library.
        """
        if state.get("version") != 1:
            raise ValueError(
                f"Adversary state of version {state.get('version')!r}: this release reads "
                "version 1."
            )
        if state["schedule"] != self.schedule.name:
            raise ValueError(
                f"The state is of schedule {state['schedule']!r}, this adversary runs "
                f"{self.schedule.name!r}: continue with the schedule that the run began with."
            )
        device = next(self._bare.module.parameters()).device
        self.schedule.load_state_dict(state["state"], device)
        self.progress = float(state["progress"])
        self.compute = float(state["compute"])
        self.images = int(state["images"])
        self._rounds = int(state["rounds"])
        self._streams.seed = int(state["seed"])
        self._forget_round()

    def _forget_round(self) -> None:
        """No round is under way, and none can be begun anew."""
        if self._round is not None:
            self._round.unroute()
        self._round = None

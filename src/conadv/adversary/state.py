"""What an adversary is saved as and continued from."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from conadv._tree import map_tensors
from conadv.adversary.read_ahead import ReadAhead
from conadv.adversary.round import RoundState, Streams
from conadv.attack import Attack
from conadv.attack.forward import BareForward
from conadv.schedules import Schedule

OF_THE_ATTACK = ("epsilon", "norm", "steps", "epsilon_min", "block_size", "at", "per")
"""What decides how far a pending copy is from its image."""


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


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
    _ahead: ReadAhead
    attack: Attack

    @property
    def seed(self) -> int:
        """Seed of the attack's own random stream."""
        return self._streams.seed

    @property
    def reads_ahead(self) -> int:
        """Number of rounds ahead for which copies are made: lookahead's tau, otherwise 0."""
        return self.schedule.reads_ahead

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, pending copies included.

        Tensors, numbers, strings, lists and dicts only: loads with ``weights_only=True``. Take it
        between two rounds. Of one rank: see `gathered_state_dict`.
        """
        if self._round is not None and self._round.backward_ran:
            warnings.warn(
                "state_dict() in the middle of a round: what its collect() would have prepared is "
                "not in it. Take it after collect(), or after skip() where the step is void.",
                RuntimeWarning,
                stacklevel=2,
            )
        return {
            "version": 1,
            "schedule": self.schedule.name,
            "state": self.schedule.state_dict(),
            "progress": self.progress,
            "compute": self.compute,
            "images": self.images,
            "rounds": self._rounds,
            "seed": self.seed,
            "attack": {name: getattr(self.attack, name) for name in OF_THE_ATTACK},
            "ahead": self._ahead.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; pending copies go to the model's device.

        Raises:
            ValueError: the state is of another schedule or attack, of another version of the
                library, or of several ranks.
        """
        if "ranks" in state:
            raise ValueError("This is the state of all ranks: use load_gathered(state).")
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
        self._check_attack(state.get("attack"))
        device = next(self._bare.module.parameters()).device
        self.schedule.load_state_dict(state["state"], device)
        self.progress = float(state["progress"])
        self.compute = float(state["compute"])
        self.images = int(state["images"])
        self._rounds = int(state["rounds"])
        self._ahead.load_state_dict(state.get("ahead", {}))
        self._streams.seed = int(state["seed"])
        self._forget_round()

    def gathered_state_dict(self) -> dict[str, Any]:
        """The states of all ranks, for trainers that save what rank 0 returns.

        Every rank has to call it. Ranks hold copies of their own images: with rank 0's state
        alone the others would go on with foreign ones.

        Returns:
            On rank 0 everything; on the others their own state alone, which is not to be saved.
        """
        own = map_tensors(Tensor.cpu, Continued.state_dict(self))  # not a subclass's
        rank, world = rank_and_world()
        ranks: list[Any] = [None] * world
        if world == 1:
            ranks = [own]
        elif rank == 0:
            dist.gather_object(own, ranks)
        else:
            dist.gather_object(own, None)
            ranks[rank] = own
        return {"version": 1, "ranks": ranks}

    def load_gathered(self, state: Mapping[str, Any]) -> None:
        """Continue from `gathered_state_dict`: each rank takes its own part.

        Raises:
            ValueError: see `load_state_dict`; also a state of another number of ranks, or one
                that was not saved by rank 0.
        """
        rank, world = rank_and_world()
        ranks = state.get("ranks")
        if ranks is None:
            raise ValueError("This is the state of one rank: use load_state_dict(state).")
        if len(ranks) != world:
            raise ValueError(
                f"The state is of {len(ranks)} ranks and now there are {world}: images are shared "
                "out in another way, and what is pending does not fit. Continue on as many, or "
                "without the adversary's state, which costs the copies of the first round."
            )
        if ranks[rank] is None:
            raise ValueError(
                f"The state has no part for rank {rank}: save what gathered_state_dict() returns "
                "on rank 0."
            )
        Continued.load_state_dict(self, ranks[rank])

    def _check_attack(self, given: Mapping[str, Any] | None) -> None:
        """Raise ValueError where pending copies were made by another attack."""
        for name, value in (given or {}).items():
            own = getattr(self.attack, name)
            if own != value:
                raise ValueError(
                    f"The state is of an attack with {name}={value!r}, this one has {own!r}: "
                    "continue with the attack that the run began with. If the change is meant, "
                    "take the entry 'attack' out of the state."
                )

    def _forget_round(self) -> None:
        """Forget the round: none is under way, and none can be begun anew."""
        if self._round is not None:
            self._round.unroute()
        self._round = None

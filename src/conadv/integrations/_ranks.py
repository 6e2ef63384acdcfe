"""What is pending on each rank of a run, in a file of its own beside others' checkpoints."""

from pathlib import Path

import torch

from conadv.adversary import Adversary
from conadv.adversary.state import rank_and_world


def save_rank(adversary: Adversary, folder: str | Path) -> None:
    """Write this rank's state to a file of its own in a checkpoint's folder."""
    rank, size = rank_and_world()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    torch.save(adversary.state_dict(), path / _name(rank, size))


def load_rank(adversary: Adversary, folder: str | Path) -> None:
    """Read what `save_rank` wrote.

    Raises:
        ValueError: the folder holds no such file, or those of another number of ranks.
    """
    rank, size = rank_and_world()
    path = Path(folder) / _name(rank, size)
    if not path.exists():
        others = sorted(Path(folder).glob("conadv-*-of-*.pt"))
        if others:
            raise ValueError(_other_size(int(others[0].stem.rpartition("-")[2]), size))
        raise ValueError(
            f"{folder} holds no {path.name}: it was written without conadv, so the copies that "
            "are due in the next step are not there. Begin a new run from its weights instead."
        )
    adversary.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _name(rank: int, size: int) -> str:
    return f"conadv-{rank:05}-of-{size:05}.pt"


def _other_size(saved: int, now: int) -> str:
    return (
        f"The checkpoint holds the adversarial copies of {saved} processes, and this run has "
        f"{now}: continue on as many as before, or begin a new run from its weights."
    )

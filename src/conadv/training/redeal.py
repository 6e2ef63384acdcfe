"""A run that goes on with another number of processes: who takes over which pending copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conadv.distributed import World


def redeal(
    ranks: int, read: Callable[[int], dict[str, Any]], world: World, micro_steps: int
) -> dict[str, Any]:
    """This rank's own state from what the ranks of the earlier process group had.

    The micro-batches of a step are the same and in the same order on any number of processes;
    what is pending moves with them. Lookahead's copies are kept by micro-batch, so none is lost
    and none changes. Recycled copies wait for the next micro-batch of their rank: they go to the
    rank that now holds the micro-batch they come from, unless a later one is among its own; with
    fewer ranks some are dropped, with more some ranks begin without, as every run does.

    Args:
        ranks: How many processes wrote the checkpoint.
        read: ``read(rank)``: `Trainer.rank_state_dict` of one of them.
        world: This process among those of today.
        micro_steps: Micro-batches of a full step, on all ranks together.
    """
    if ranks == world.size:
        return read(world.rank)
    before, now = micro_steps // ranks, world.slots(micro_steps)
    newest = (now[-1] + 1) // before - 1
    # The last micro-batch of an earlier rank that is among this rank's, if there is one.
    heir = newest if newest >= 0 and (newest + 1) * before - 1 in now else None
    state = read(now[0] // before if heir is None else heir)
    adversary = dict(state["adversary"])
    if adversary["schedule"] == "lookahead":
        pending = _by_slot(read, adversary["state"], before, now)
        adversary["state"] = {**adversary["state"], "pending": pending}
    elif heir is None and "pending" in adversary["state"]:
        adversary["state"] = {**adversary["state"], "pending": []}
    return {**state, "adversary": adversary}


def _by_slot(
    read: Callable[[int], dict[str, Any]], example: dict[str, Any], before: int, now: range
) -> list[Any]:
    """Lookahead's queue: the copies of a rank's micro-batches of one step, then of the next."""
    queues = {
        rank: read(rank)["adversary"]["state"]["pending"]
        for rank in sorted({slot // before for slot in now})
    }
    steps = len(example["pending"]) // before
    return [
        queues[slot // before][step * before + slot % before]
        for step in range(steps)
        for slot in now
    ]

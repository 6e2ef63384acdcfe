"""A run that goes on with another number of processes: who takes over which pending copies."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conadv.optim.sharded import is_dtensor
from conadv.trainer.distributed import World


def redeal(
    ranks: int,
    read: Callable[[int], dict[str, Any]],
    world: World,
    micro_steps: int,
    queued: bool = False,
) -> dict[str, Any]:
    """This rank's own state from what the ranks of the earlier process group had.

    The micro-batches of a step are the same and in the same order on any number of processes;
    what is pending moves with them. Copies that are kept by micro-batch (lookahead's) are not lost
    and do not change. Others (recycled ones) wait for the next micro-batch of their rank: they go
    to the rank that now holds the micro-batch they come from, unless a later one is among its own;
    with fewer ranks some are dropped, with more some ranks begin without, as every run does.

    Args:
        ranks: How many processes wrote the checkpoint.
        read: ``read(rank)``: `Trainer.rank_state_dict` of one of them.
        world: This process among those of today.
        micro_steps: Micro-batches of a full step, on all ranks together.
        queued: Whether the schedule keeps an entry for each round (`Schedule.queues_rounds`).
    """
    if ranks == world.size:
        return read(world.rank)
    before, now = micro_steps // ranks, world.slots(micro_steps)
    newest = (now[-1] + 1) // before - 1
    # The last micro-batch of an earlier rank that is among this rank's, if there is one.
    heir = newest if newest >= 0 and (newest + 1) * before - 1 in now else None
    source = now[0] // before if heir is None else heir

    def of_images(rank: int) -> dict[str, Any]:
        """The state of the copies of images, which one of weights may hold."""
        own: dict[str, Any] = read(rank)["adversary"]
        return own["adversary"] if "adversary" in own else own

    state, adversary = read(source), dict(of_images(source))
    if queued:
        adversary["state"] = _by_slot(of_images, source, before, now)
    elif heir is None and "pending" in adversary["state"]:
        adversary["state"] = {**adversary["state"], "pending": []}
    if "adversary" in state["adversary"]:  # old gradients are kept by micro-batch
        pending = _by_slot(lambda rank: read(rank)["adversary"], source, before, now)
        adversary = {**state["adversary"], "state": pending, "adversary": adversary}
    return {**state, "adversary": adversary}


def _by_slot(
    read: Callable[[int], dict[str, Any]], example: int, before: int, now: range
) -> dict[str, Any]:
    """A state with a queue of rounds: those of a rank's micro-batches of one step, then the next.

    Args:
        read: An adversary's state, by its rank.
        example: Of which rank the rest of the state is taken.
        before: Micro-batches that a rank had.
        now: Those of this rank.
    """
    states = {rank: read(rank)["state"] for rank in sorted({slot // before for slot in now})}
    state = states.get(example) or read(example)["state"]
    pending = [
        states[slot // before]["pending"][step * before + slot % before]
        for step in range(len(state["pending"]) // before)
        for slot in now
    ]
    return {**state, "pending": pending}


def spread(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank holds whole; nothing is communicated.

    Args:
        value: the whole tensor.
        like: cut in the way that the result shall be. If it is no DTensor, ``value`` is returned,
            and so is a ``value`` that is one already.
    """
    if not is_dtensor(like) or is_dtensor(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(device=like.device, dtype=value.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def spread_model(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state, its whole tensors cut as the present ones are."""
    return {key: spread(value, like[key]) if key in like else value for key, value in state.items()}


def spread_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, its whole buffers cut as their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    buffers = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=False):
        if number in buffers:
            buffers[number] = {
                key: spread(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in buffers[number].items()
            }
    return {**state, "state": buffers}


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strictly load a plain mapping of what ``model.state_dict()`` once held.

    A state dict carries the versions of the modules' formats beside its tensors, and a checkpoint
    of tensors alone does not. Modules that ask for theirs (torchvision's MNASNet) refuse a state
    without; they get the present ones, which is what wrote it.

    Raises:
        RuntimeError: keys or shapes that do not fit.
    """
    versioned: OrderedDict[str, Tensor] = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(versioned)

"""What is checked before anything is computed."""

from torch import nn

from conadv.adversary import Adversary
from conadv.adversary.mixing import finds_unused, is_fully_sharded
from conadv.branches.branches import find_routers
from conadv.branches.wrappers import unwrap
from conadv.weights.attack import WeightAttack
from conadv.weights.schedule import WeightSchedule


def check_together(
    model: nn.Module,
    attack: WeightAttack,
    schedule: WeightSchedule,
    centred: bool,
    adversary: Adversary | None,
    rounds: int,
) -> None:
    """Raise ValueError where the arguments of a `WeightAdversary` do not go together."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r}: give the number of loss() calls of a step, from 1.")
    if is_fully_sharded(model):
        raise ValueError(
            "The model is sharded (fully_shard), and a part of a weight cannot be moved alone: "
            "use DistributedDataParallel, or conadv.Adversary, which perturbs images."
        )
    if finds_unused(model) and find_routers(unwrap(model)[0]):
        raise ValueError(
            "DistributedDataParallel(find_unused_parameters=True) sees one forward of several: "
            "leave it at False. Branches without images get a gradient of zero here."
        )
    if centred and schedule.ascents and not schedule.delay(rounds) and rounds > 1:
        raise ValueError(
            f"centred=True with rounds={rounds}: {schedule.name} needs the gradients of the whole "
            "step before its first pass at moved weights. Give loss() the whole step and cut it "
            "with WeightAttack(micro_batch=...), or use schedule='recycled'."
        )
    if adversary is None:
        return
    if adversary.auto_collect:
        raise ValueError(
            "adversary= has auto_collect=True: its rounds end with those of this object. Make it "
            "without, and call collect() here."
        )
    if adversary.sums:
        raise ValueError(
            "adversary= has loss='sum': passes at moved weights share one mean with the images and "
            "their copies, in which the images' own loss cannot stay whole. Use loss='mean'."
        )
    if adversary.attack.at is not None:
        raise ValueError(
            f"adversary= perturbs the layer {adversary.attack.at!r}, which passes at moved weights "
            "would be perturbed by as well: use an attack on images."
        )
    if adversary.model is not model:
        raise ValueError("adversary= is of another model: make both with the same one.")
    if adversary.schedule.reads_ahead and schedule.reads_ahead(rounds):
        raise ValueError("Images and weights cannot both look ahead: use 'recycled' for one.")
    if attack.micro_batch is not None and adversary.schedule.makes_copies:
        raise ValueError(
            f"micro_batch={attack.micro_batch} with adversary=: one call of loss() is one "
            "micro-batch then. Accumulate: call it for each, with fraction= and rounds=."
        )

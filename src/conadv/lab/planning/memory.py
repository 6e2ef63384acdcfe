"""Memory of one device, in bytes: what is counted and what is not is in docs/planning.md."""

from conadv.lab.planning.job import Dealt, Job, Method
from conadv.lab.planning.network import Network
from conadv.trainer.probe.memory import Memory

_FP32 = 4


def memory_of(
    network: Network,
    job: Job,
    method: Method,
    dealt: Dealt,
    saved_per_image: float | None = None,
    beside: bool = False,
) -> Memory:
    """Memory of a device.

    Args:
        network: counted.
        job: sizes.
        method: decides copies and what is pending.
        dealt: the device's part of a step.
        saved_per_image: measured bytes of activations per image; None: those counted.
        beside: whether what is taken of later batches runs at the same time as the training pass.
    """
    weights, pending = float(_FP32 * network.parameters), method.pending(network, dealt)
    method = method.heaviest
    scale = 1.0 if saved_per_image is None else saved_per_image / max(network.saved, 1.0)
    train = scale * network.saved * method.work.images * dealt.micro_batch
    # What runs beside the training pass adds to it; what runs before it is gone by then.
    extras = method.extras(network)
    added = sum(extra.saved for extra in extras if extra.ahead and beside)
    before = max((e.saved for e in extras if not (e.ahead and beside)), default=0.0)
    train, before = train + scale * dealt.micro_batch * added, scale * dealt.micro_batch * before
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=weights * (job.optimizer_states + job.averaged),
        activations=network.saved_once * method.passes
        + max(train, before)
        + method.beside_weights(network),
        pending=pending,
    )

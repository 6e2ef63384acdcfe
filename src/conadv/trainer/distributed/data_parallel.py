"""What the ranks of a run exchange in a step: gradients, running statistics, a few numbers.

Everything is started as soon as it is known and awaited together just before the optimizer's
step, so that an attack on the next batch runs while the network is busy.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv.adversary.overlap import DeferredAllReduce
from conadv.trainer.distributed import World
from conadv.trainer.distributed.agreement import check_agreement, weights_checksum
from conadv.trainer.distributed.batch_norm import JoinedStatistics

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Its name since torch 2.14, which warns of the older one.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """The other ranks, as a step sees them. Here there are none: a process on its own.

    Args:
        wrapped: what the adversary trains through.
        world: of this process.
    """

    lockstep = False
    """Whether a forward pass on one rank needs one on every other, outside of training too."""
    mesh: "DeviceMesh | None" = None
    """Of the ranks that hold the weights in parts; None where each holds them whole."""

    def __init__(self, wrapped: Any, world: World | None = None) -> None:
        self.wrapped = wrapped
        self.world = world or World()

    def begin(self) -> None:
        """Begin the passes of a step."""

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Enclose forward and backward; gradients travel with the step's last micro-batch."""
        return nullcontext()

    def undo_statistics(self) -> None:
        """Set the running statistics back to those of `begin`."""

    def send(self, message: Tensor) -> None:
        """Start to tell the other ranks this one's numbers of the step, shape (n,)."""
        self._message = message

    def wait(self) -> Tensor:
        """Make the gradients means over ranks; all ranks' messages, shape (ranks, n)."""
        return self._message.unsqueeze(0)


class Joined(Exchange):
    """What every kind of data parallelism shares: running statistics and messages.

    Args:
        model: the bare model, whose running statistics are joined.
        wrapped: what the adversary trains through.
        world: of this process; a process group of its size exists.
    """

    def __init__(self, model: nn.Module, wrapped: Any, world: World) -> None:
        super().__init__(wrapped, world)
        self._statistics = JoinedStatistics(model, world.rank, world.size)

    def begin(self) -> None:
        """Remember the running statistics."""
        self._statistics.begin()

    def undo_statistics(self) -> None:
        """Put back what `begin` remembered."""
        self._statistics.undo()

    def send(self, message: Tensor) -> None:
        """Start gathering messages, and how often the running statistics were updated."""
        updates = self._statistics.updates().to(message.dtype)
        self._lengths = [len(message), len(updates)]
        own = torch.cat([message, updates])
        self._gathered = own.new_empty(self.world.size * len(own))
        self._gathering = _gather(self._gathered, own, async_op=True)

    def wait(self) -> Tensor:
        """Wait for everything that is under way."""
        with self.world.watchdog.waiting():
            self._wait_for_gradients()
            assert self._gathering is not None
            self._gathering.wait()
            by_rank = self._gathered.view(self.world.size, -1)
            messages, updates = by_rank.split(self._lengths, dim=1)
            self._statistics.join(updates)
        return messages  # type: ignore[no-any-return]

    def _wait_for_gradients(self) -> None:
        """Wait for nothing, unless their exchange is awaited late."""


class DataParallel(Joined):
    """DistributedDataParallel whose all-reduce is awaited late.

    Args:
        model: the bare model, whose running statistics are joined.
        module: the model or its compiled form.
        world: of this process; a process group of its size exists.
    """

    def __init__(self, model: nn.Module, module: nn.Module, world: World) -> None:
        device = next(model.parameters()).device
        wrapped = nn.parallel.DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_leave_buffers_alone(),  # they are joined instead, once per step
        )
        super().__init__(model, wrapped, world)
        self._overlap = DeferredAllReduce(wrapped)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of earlier micro-batches stay here; those of the last take them along."""
        return nullcontext() if last else self.wrapped.no_sync()

    def _wait_for_gradients(self) -> None:
        self._overlap.wait()


def _leave_buffers_alone() -> dict[str, Any]:
    """DDP's setting under its present name, or the one before."""
    names = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in names else "broadcast_buffers": False}


class FullySharded(Joined):
    """A model under ``torch.distributed.fsdp.fully_shard``, changed in place.

    Repeated blocks are gathered one at a time, what remains with the root. Gradients are scattered
    at the end of a step's last backward pass, as under DistributedDataParallel; an attack gathers
    weights of its own, so it does not run beside that exchange.

    Args:
        model: the bare model, the same on every rank; its parameters become DTensors.
        world: of this process; a process group of its size exists.

    Raises:
        DistributedError: the ranks' models differ, of which each would keep a part.
    """

    lockstep = True

    def __init__(self, model: nn.Module, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        facts = {"the weights": weights_checksum(model)}
        check_agreement(facts, world, "Start every process alike, with the same seed.")
        device = next(model.parameters()).device
        self.mesh = init_device_mesh(device.type, (world.size,))
        for block in repeated_blocks(model):
            fully_shard(block, mesh=self.mesh)
        super().__init__(model, fully_shard(model, mesh=self.mesh), world)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Earlier micro-batches' gradients stay here, whole; those of the last take them along."""
        self.wrapped.set_requires_gradient_sync(last)
        return self.world.watchdog.waiting()  # weights are gathered in every pass


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that a model repeats: elements of a Sequential or ModuleList of one class.

    Of nested ones the innermost, such as the blocks of a stage. Elements without parameters are
    left out.
    """
    found = list(_blocks(model))
    return [block for block in found if any(True for _ in block.parameters())]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    repeated = isinstance(module, nn.Sequential | nn.ModuleList) and alike
    for child in children:
        inner = list(_blocks(child))
        if inner or not repeated:
            yield from inner
        else:
            yield child

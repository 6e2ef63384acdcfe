"""What the ranks of a run exchange in a step: gradients, running statistics, a few numbers.

Everything is started as soon as it is known and awaited together just before the optimizer's
step, so that an attack on the next batch runs while the network is busy.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv.adversary.overlap import DeferredAllReduce
from conadv.trainer.distributed import World
from conadv.trainer.distributed.batch_norm import JoinedStatistics


class Exchange(Protocol):
    """The other ranks, as a step sees them."""

    world: World
    wrapped: Any
    """What the adversary trains through."""
    lockstep: bool
    """Whether a forward pass on one rank needs one on every other, outside of training too."""

    def begin(self) -> None:
        """A step begins."""

    def round(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward; gradients travel with the last round of the step."""

    def undo_statistics(self) -> None:
        """The running statistics are again those of `begin`."""

    def numbers(self, mine: Tensor) -> None:
        """Hand over this rank's numbers of the step, shape (n,)."""

    def wait(self) -> Tensor:
        """Gradients are means over ranks from here on; all ranks' numbers, shape (ranks, n)."""


class Alone:
    """One process: nothing to exchange."""

    lockstep = False

    def __init__(self, module: nn.Module) -> None:
        self.world = World()
        self.wrapped = module

    def begin(self) -> None:
        """Nothing to remember."""

    def round(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing to hold back."""
        return nullcontext()

    def undo_statistics(self) -> None:
        """Never asked for: a process on its own always has images."""

    def numbers(self, mine: Tensor) -> None:
        """Keep them."""
        self._numbers = mine

    def wait(self) -> Tensor:
        """This rank's numbers, shape (1, n)."""
        return self._numbers.unsqueeze(0)


class Joined:
    """What every kind of data parallelism shares: running statistics and the numbers of a step.

    Args:
        model: the bare model, whose running statistics are joined.
        world: of this process; a process group of its size exists.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.world = world
        self._statistics = JoinedStatistics(model, world.rank, world.size)

    def begin(self) -> None:
        """Remember the running statistics."""
        self._statistics.begin()

    def undo_statistics(self) -> None:
        """Put back what `begin` remembered."""
        self._statistics.undo()

    def numbers(self, mine: Tensor) -> None:
        """Start gathering the numbers, and how often the running statistics were updated."""
        self._count = len(mine)
        mine = torch.cat([mine, self._statistics.updates().to(mine.dtype)])
        self._all = mine.new_empty(self.world.size * len(mine))
        self._gathering = dist.all_gather_into_tensor(self._all, mine, async_op=True)

    def wait(self) -> Tensor:
        """Wait for everything that is under way."""
        with self.world.watchdog.waiting():
            self._wait_for_gradients()
            assert self._gathering is not None
            self._gathering.wait()
            gathered = self._all.view(self.world.size, -1)
            numbers, updates = gathered[:, : self._count], gathered[:, self._count :]
            self._statistics.join(updates)
        return numbers

    def _wait_for_gradients(self) -> None:
        """Nothing to wait for, unless their exchange is awaited late."""


class DataParallel(Joined):
    """DistributedDataParallel whose all-reduce is awaited late.

    Args:
        model: the bare model, whose running statistics are joined.
        module: the model or its compiled form.
        world: of this process; a process group of its size exists.
    """

    lockstep = False

    def __init__(self, model: nn.Module, module: nn.Module, world: World) -> None:
        super().__init__(model, world)
        device = next(model.parameters()).device
        self.wrapped = nn.parallel.DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_leave_buffers_alone(),  # they are joined instead, once per step
        )
        self._overlap = DeferredAllReduce(self.wrapped)

    def round(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of earlier rounds stay here; those of the last one take them along."""
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
        model: the bare model; its parameters become DTensors.
        world: of this process; a process group of its size exists.
    """

    lockstep = True

    def __init__(self, model: nn.Module, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (world.size,))
        for block in repeated_blocks(model):
            fully_shard(block, mesh=mesh)
        self.wrapped: Any = fully_shard(model, mesh=mesh)
        super().__init__(model, world)

    def round(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of earlier rounds stay here, whole; those of the last one take them along."""
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

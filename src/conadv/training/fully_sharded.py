"""FSDP2: every rank holds a part of each weight, and gathers a block's just before it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from conadv.distributed import World
from conadv.training.parallel import Joined


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

"""LARS and LAMB on DTensors that are cut by hand, and the same in one process."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from conadv.optim import LARS
from support.gloo import Name
from support.optimizers import OPTIONS, make

DOUBLE = torch.float64
STEPS = 5
SHAPES = ((7, 5), (1, 3), (3, 7), (2, 3, 3, 3), (0, 4), (9,), (1,))
"""Two or four ranks share none of the first dimensions but one evenly; some ranks have no rows."""

PLACEMENTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "rows": ((2,), (Shard(0),)),
    "columns": ((2,), (Shard(1),)),
    "replicated": ((2,), (Replicate(),)),
    "one rank each": ((2, 1), (Replicate(), Shard(0))),
    "hybrid": ((2, 2), (Replicate(), Shard(0))),
    "both": ((2, 2), (Shard(0), Shard(1))),
}
"""Mesh and placements; the last two need four ranks."""


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def values(count: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES[:count]
    return [torch.randn(s, generator=generator, dtype=DOUBLE).to(dtype) for s in shapes]


def given(
    option: str,
    implementation: str,
    place: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    dtype: torch.dtype = DOUBLE,
    shapes: int = len(SHAPES),
) -> list[Tensor]:
    """The weights after some steps with gradients that depend on the step alone."""
    params = [nn.Parameter(place(tensor)) for tensor in values(shapes, 0, dtype)]
    # Without an eps a factor on both norms, as from replicas that count twice, would go unseen.
    more = {"eps": 1.0} if option == "lars" else {}
    optimizer = make(option, implementation, params, **more)
    for step in range(STEPS):
        for index, (p, grad) in enumerate(
            zip(params, values(shapes, 9 + step, dtype), strict=True)
        ):
            # One tensor misses a step, another one has a gradient of zero.
            if (step, index) == (1, 2):
                grad.zero_()
            p.grad = None if (step, index) == (2, 0) else place(grad)
        optimizer.step()
    return [whole(p) for p in params]


def given_on_ranks(
    option: str, implementation: str, placement: str, dtype: torch.dtype, shapes: int
) -> list[Tensor]:
    sizes, placements = PLACEMENTS[placement]
    mesh = init_device_mesh("cpu", sizes)
    place = functools.partial(distribute_tensor, device_mesh=mesh, placements=placements)
    return given(option, implementation, place, dtype, shapes)


def gradients_elsewhere(kind: str, placement: Placement) -> list[Tensor]:
    """Parameters cut by rows, gradients that lie otherwise."""
    mesh = init_device_mesh("cpu", (2,))

    def gradient(grad: Tensor) -> Tensor:
        share = grad / 2 if placement.is_partial() else grad  # the ranks' sum is the gradient
        return DTensor.from_local(share, mesh, [placement])

    params = [nn.Parameter(distribute_tensor(t, mesh, [Shard(0)])) for t in values(5, 0, DOUBLE)]
    optimizer = make(kind, "foreach", params)
    for p, grad in zip(params, values(5, 9, DOUBLE), strict=True):
        p.grad = gradient(grad)
    optimizer.step()
    return [whole(p) for p in params]


def options_for(placement: str) -> list[tuple[str, str, torch.dtype, int]]:
    """Option, implementation, dtype and number of shapes to try with a placement."""
    if placement == "rows":
        computed = ("reference", "foreach")
        found = [(o, i, DOUBLE, len(SHAPES)) for o in OPTIONS for i in computed]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found += [(o, i, dtype, len(SHAPES)) for o in ("lars", "lamb") for i in computed]
        return found
    shapes = 5 if placement in ("columns", "both") else len(SHAPES)  # with a second dimension
    return [(o, "foreach", DOUBLE, shapes) for o in ("lars", "lamb")]


def stale_backward(rank: int) -> dict[str, str]:
    """A backward pass through weights that a step has changed since."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
    loss = (p * p).sum()
    p.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    LARS([p], lr=1.0).step()
    try:
        loss.backward()
    except RuntimeError as error:
        return {"message": str(error)}
    return {"message": ""}


def cases(world: int) -> dict[Name, Callable[[int], Any]]:
    """Name -> function of the rank, in the same order on every rank."""
    found: dict[Name, Callable[[int], Any]] = {}
    for placement, (sizes, _) in PLACEMENTS.items():
        if torch.Size(sizes).numel() != world:
            continue
        for option, implementation, dtype, shapes in options_for(placement):
            arguments = (option, implementation, placement, dtype, shapes)
            found["given", placement, option, implementation, str(dtype)] = lambda _, a=arguments: (
                given_on_ranks(*a)
            )
    if world == 2:
        found["stale backward",] = stale_backward
        for kind in ("lars", "lamb"):
            for placement in (Replicate(), Partial()):
                arguments = (kind, placement)
                found["gradients", kind, type(placement).__name__] = lambda _, a=arguments: (
                    gradients_elsewhere(*a)
                )
    return found

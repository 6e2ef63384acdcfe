"""Models in fully_shard, trained by LARS and LAMB on two ranks; and the same in one process."""

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.debug import CommDebugMode

from conadv.optim import LAMB, LARS, param_groups
from support import dtensors
from support.dtensors import STEPS, whole
from support.gloo import Name
from support.optimizers import IMPLEMENTATIONS

FULL = StateDictOptions(full_state_dict=True)


def model(rank: int | None = None) -> nn.Sequential:
    """Linear layers with 7, 3 and 1 rows and one norm; in float64, sharded if a rank is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)
        ).double()
    if rank is not None:
        for layer in (net[0], net[3]):
            fully_shard(layer)
        fully_shard(net)  # the norm and the last layer are the root's own
    return net


def optimizer(kind: str, implementation: str, net: nn.Module) -> LARS | LAMB:
    groups = param_groups(net, weight_decay=0.1)
    options = IMPLEMENTATIONS[implementation]
    return LARS(groups, lr=5.0, **options) if kind == "lars" else LAMB(groups, lr=0.02, **options)


def train(net: nn.Module, opt: LARS | LAMB, steps: Iterable[int], rank: int | None = None) -> None:
    """Steps on eight rows; each of two ranks takes four of them."""
    for step in steps:
        generator = torch.Generator().manual_seed(50 + step)
        x, y = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (5, 1))
        if rank is not None:
            x, y = (t[rank * 4 : rank * 4 + 4] for t in (x, y))
        nn.functional.mse_loss(net(x), y).backward()
        _clip(net, 0.2)
        opt.step()
        opt.zero_grad(set_to_none=True)


def _clip(net: nn.Module, most: float) -> None:
    """As `clip_grad_norm_`, which for sharded gradients is off by 1e-5 in older torch."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.stack([whole(grad).norm() for grad in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(min(1.0, most / float(norm)))


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p) for name, p in net.named_parameters()}


def trained(rank: int | None, kind: str, implementation: str) -> dict[str, Tensor]:
    net = model(rank)
    train(net, optimizer(kind, implementation, net), range(STEPS), rank)
    return weights(net)


def communication(rank: int, kind: str, implementation: str) -> dict[str, int]:
    """Collectives in one optimizer step, by name."""
    net = model(rank)
    opt = optimizer(kind, implementation, net)
    train(net, opt, range(1), rank)
    net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    with CommDebugMode() as mode:
        opt.step()
    return {str(name): count for name, count in mode.get_comm_counts().items() if count}


def full_state(rank: int | None, kind: str) -> dict[str, Any]:
    """Whole states of model and optimizer after two steps; without a rank of one process."""
    net = model(rank)
    opt = optimizer(kind, "foreach", net)
    train(net, opt, range(2), rank)
    return {
        "model": get_model_state_dict(net, options=FULL),
        "optimizer": get_optimizer_state_dict(net, opt, options=FULL),
    }


def resume(state: dict[str, Any], rank: int | None, kind: str) -> dict[str, Tensor]:
    """The weights after the other steps, in a new model and with the other implementation."""
    net = model(rank)
    opt = optimizer(kind, "reference", net)
    state = copy.deepcopy(state)  # torch puts the rank's parts into the dictionary that it is given
    set_model_state_dict(net, state["model"], options=FULL)
    set_optimizer_state_dict(net, opt, state["optimizer"], options=FULL)
    train(net, opt, range(2, STEPS), rank)
    return weights(net)


def round_trip(rank: int, kind: str) -> dict[str, Any]:
    """From two ranks to two ranks, and from one process to two ranks."""
    state = full_state(rank, kind)
    return {
        "full": state,
        "sharded": resume(state, rank, kind),
        "from one": resume(full_state(None, kind), rank, kind),
    }


def own_state(rank: int, kind: str) -> dict[str, Tensor]:
    """``state_dict`` as it is, with this rank's parts, through a file."""
    net = model(rank)
    opt = optimizer(kind, "foreach", net)
    train(net, opt, range(2), rank)
    file = io.BytesIO()
    torch.save([net.state_dict(), opt.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net = model(rank)
    opt = optimizer(kind, "foreach", net)
    net.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    train(net, opt, range(2, STEPS), rank)
    return weights(net)


def refusals(rank: int, kind: str) -> dict[str, str]:
    """What is said of states and parameters that cannot be served."""
    messages = {}
    one, many = model(), model(rank)
    sharded, single = optimizer(kind, "foreach", many), optimizer(kind, "foreach", one)
    train(one, single, range(1))
    train(many, sharded, range(1), rank)
    before = weights(many)
    for name, (target, source) in {
        "whole": (sharded, single),
        "sharded": (single, sharded),
    }.items():
        try:
            target.load_state_dict(source.state_dict())
        except ValueError as error:
            messages[name] = str(error)
    train(many, sharded, range(1, 2), rank)  # a refused state has changed nothing
    assert any(not torch.equal(before[k], v) for k, v in weights(many).items())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Partial()]))
    p.grad = DTensor.from_local(torch.ones(2, 2), mesh, [Partial()])
    try:
        LARS([p], lr=1.0).step()
    except RuntimeError as error:
        messages["partial"] = str(error)
    return messages


def groups(rank: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(p.shape) for p in group["params"]] for group in param_groups(model(rank))]


def cases(world: int) -> dict[Name, Callable[[int], Any]]:
    """Name -> function of the rank, in the same order on every rank."""
    found = dtensors.cases(world)
    found["groups",] = groups
    for kind in ("lars", "lamb"):
        for implementation in IMPLEMENTATIONS:
            both = (kind, implementation)
            found["trained", *both] = lambda r, a=both: trained(r, *a)
            found["communication", *both] = lambda r, a=both: communication(r, *a)
        found["round trip", kind] = lambda r, k=kind: round_trip(r, k)
        found["own state", kind] = lambda r, k=kind: own_state(r, k)
        found["refusals", kind] = lambda r, k=kind: refusals(r, k)
    return found

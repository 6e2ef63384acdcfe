"""What a step of LARS and LAMB costs against timm's multi-tensor ones.

Weights and gradients are those of a real network; no images are involved. Steps of all
implementations are interleaved and divided round by round, so a machine that slows down for a
while slows both sides of a ratio. The wall-clock is compared, and also how near a step comes to
the time that merely moving its bytes takes.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conadv._words import import_named
from conadv.errors import ConadvError, install_command
from conadv.optim import LAMB, LARS, param_groups
from conadv.trainer.probe.memory import seconds_of
from conadv.trainer.recipe.updates import OPTIMIZERS
from conadv.trainer.run import environment as machine

WEIGHT_DECAY = 5e-5


def _timm(name: str, **options: Any) -> Callable[[list[dict[str, Any]]], Optimizer]:
    return lambda groups: import_named(f"timm.optim:{name}")(groups, foreach=True, **options)


CONTENDERS: dict[tuple[str, str], Callable[[list[dict[str, Any]]], Optimizer]] = {
    ("lars", "timm"): _timm("Lars", lr=0.1, momentum=0.9),
    ("lars", "foreach"): lambda groups: LARS(groups, lr=0.1),
    # Clipping of the global norm is not part of the comparison: ours leaves it to the user.
    ("lamb", "timm"): _timm("Lamb", lr=1e-3, max_grad_norm=None),
    ("lamb", "foreach"): lambda groups: LAMB(groups),
}
"""Optimizer by (name, implementation); ``timm`` is what the others are divided by."""


@dataclass(frozen=True)
class Contender:
    """One optimizer with weights and gradients of its own."""

    optimizer: Optimizer
    device: torch.device

    def seconds(self) -> float:
        """Wall-clock time of one step."""
        return seconds_of(self.optimizer.step, self.device)

    def tensors(self) -> Iterator[Tensor]:
        """Weights, gradients and state."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                yield p
                yield p.grad
                state = self.optimizer.state[p].values()
                yield from (value for value in state if isinstance(value, Tensor))

    def peak_bytes(self) -> int:
        """Weights, gradients, state, and the most that a step needs beside them."""
        held = sum(t.numel() * t.element_size() for t in self.tensors())
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.optimizer.step()
            torch.cuda.synchronize()
            return held + torch.cuda.max_memory_allocated() - before
        return held + _peak_of_allocations(self.optimizer.step)


def run(
    model: str = "timm/resnet50",
    device: str = "cpu",
    dtype: str = "float32",
    repeats: int = 20,
    on_progress: Callable[[str], None] | None = None,
    *,
    warmup: int = 3,
) -> dict[str, Any]:
    """Measure every implementation against timm's.

    Args:
        model: name as in a recipe; only its parameters are used.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of weights, gradients and state: ``"float32"`` or ``"bfloat16"``.
        repeats: measured rounds; each takes one step of every implementation.
        on_progress: called with a line of text at every stage.
        warmup: rounds before them that are not counted.

    Returns:
        ``{"rows": [...], "settings": {...}, "environment": {...}}``. Rows have ``optimizer``,
        ``implementation`` (timm, foreach), ``step_ratio`` {median, p10, p90},
        ``step_seconds_median``, ``first_step_seconds``, ``memory_ratio``
        (weights, gradients, state and temporaries) and ``copy_share``: the bytes that a step has
        to move, over its time and the measured bandwidth of a copy.

    Raises:
        ConadvError: timm is missing.
    """
    say = on_progress or (lambda _: None)
    where = torch.device(device)
    network = _network(model).to(where, getattr(torch, dtype))
    contenders, first, peaks = {}, {}, {}
    for key, make in CONTENDERS.items():
        say(f"preparing {' '.join(key)}")
        contenders[key] = Contender(make(_copied_groups(network)), where)
        first[key] = contenders[key].seconds()
        contenders[key].seconds()
        peaks[key] = contenders[key].peak_bytes()
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    copy = _Copy(where)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    bandwidths = []
    for repeat in range(warmup + repeats):
        say(f"round {repeat + 1} of {warmup + repeats}" + (" (warm-up)" * (repeat < warmup)))
        bandwidth = copy.bytes_per_second()
        seconds = {key: contender.seconds() for key, contender in contenders.items()}
        if repeat >= warmup:
            bandwidths.append(bandwidth)
            for key, value in seconds.items():
                times[key].append(value)
    rows = []
    for (optimizer, implementation), own in times.items():
        key, base = (optimizer, implementation), (optimizer, "timm")
        median = statistics.median(own)
        moved = OPTIMIZERS[optimizer].passes() * size
        rows.append(
            {
                "optimizer": optimizer,
                "implementation": implementation,
                "step_ratio": machine.spread(
                    [a / b for a, b in zip(own, times[base], strict=True)]
                ),
                "step_seconds_median": median,
                "first_step_seconds": first[key],
                "memory_ratio": peaks[key] / peaks[base],
                "copy_share": moved / median / statistics.median(bandwidths),
            }
        )
    return {
        "rows": rows,
        "settings": {
            "model": model,
            "device": device,
            "dtype": dtype,
            "repeats": repeats,
            "warmup": warmup,
            "tensors": len(list(network.parameters())),
            "parameters": sum(p.numel() for p in network.parameters()),
            "copy_bytes_per_second": statistics.median(bandwidths),
        },
        "environment": machine.environment(device),
    }


class _Copy:
    """A large copy in memory: what the memory can do at best, reads and writes together."""

    def __init__(self, device: torch.device, size: int = 1 << 28) -> None:
        self.source = torch.ones(size // 4, device=device)
        self.target = torch.zeros_like(self.source)

    def bytes_per_second(self) -> float:
        seconds = seconds_of(lambda: self.target.copy_(self.source), self.source.device)
        return 2 * self.source.numel() * 4 / seconds


def _network(name: str) -> nn.Module:
    try:
        import timm  # noqa: F401
    except ImportError as error:
        raise ConadvError(
            "This benchmark divides by timm's optimizers, and timm is not installed. "
            f"Type: {install_command('train')}"
        ) from error
    from conadv.trainer.models.zoo import create_model

    torch.manual_seed(0)
    return create_model(name, 3, 1000)


def _copied_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups over copies of the weights, each with the same random gradient."""
    generator = torch.Generator().manual_seed(1)
    groups = param_groups(network, WEIGHT_DECAY)
    for group in groups:
        copies = [nn.Parameter(p.detach().clone()) for p in group["params"]]
        for p in copies:
            p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3).to(p)
        group["params"] = copies
    return groups


def _peak_of_allocations(function: Callable[[], Any]) -> int:
    """The most bytes of tensors that a function holds at once on the CPU, above the start."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it complains where there is no GPU
    from torch.profiler import ProfilerActivity, profile

    # acc_events: there is one cycle, so all it changes is a warning of some releases.
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as recorded:
        function()
    events: Any = recorded.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, size in memory:
        held += size
        peak = max(peak, held)
    return peak

"""The largest micro-batch that fits into memory, found by trying small ones in another process."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import torch

from conadv._numbers import divisors
from conadv.errors import RecipeError
from conadv.trainer.distributed import World
from conadv.trainer.distributed.world import local_device
from conadv.trainer.recipe import Recipe, change_recipe, make_recipe
from conadv.trainer.run.device import resolve_device
from conadv.trainer.run.environment import proc_bytes

FILL = 0.8
"""Share of the free memory that a prediction may take: the rest is for what it did not see."""


@dataclass(frozen=True)
class Fit:
    """What was chosen, and why."""

    micro_batch: int
    norm_group: int
    predicted: int
    """Peak bytes of one process."""
    available: int
    """Bytes that one process may take."""

    def __str__(self) -> str:
        return (
            f"micro-batch {self.micro_batch:,}, in normalisation groups of {self.norm_group}: "
            f"about {self.predicted / 2**30:.2f} GiB of the {self.available / 2**30:.2f} GiB "
            "that are free"
        )


def candidates(recipe: Recipe, ranks: int) -> list[int]:
    """Micro-batches that a rank could take, in rising order.

    Parts of a rank's share of the global batch that are made of whole normalisation groups; the
    groups are those of the recipe, so the choice changes no result but rounding.

    Raises:
        RecipeError: Not even one group per rank.
    """
    group, total = recipe.norm_group, recipe.batch.global_batch
    share, rest = divmod(total, ranks * group)
    if rest:
        raise RecipeError(
            f"batch.global_batch={total} cannot be shared out to {ranks} processes in "
            f"normalisation groups of {group}: give a multiple of {ranks * group}, or another "
            "batch.norm_group."
        )
    return [group * k for k in divisors(share)]


def fit(recipe: Recipe, world: World) -> Fit:
    """Find the largest micro-batch that fits this machine.

    The peak memory of a training step is measured with the smallest sizes, each in a process of
    its own, and grows linearly from there. On a GPU the choice is tried out, too.

    Args:
        recipe: Its ``batch.micro_batch`` is what is looked for.
        world: Processes of one machine share its memory, where they have no GPU of their own.

    Raises:
        RecipeError: Not even the smallest fits, or this system does not tell its memory.
    """
    device = resolve_device(local_device(recipe.hardware.device, world))
    sizes = candidates(recipe, world.size)
    available = _available(device, world)
    peaks: dict[int, int] = {}
    for size in sizes[:2]:
        peaks[size] = _measure(recipe, size, device)
    slope, base = _line(peaks)
    chosen = [size for size in sizes if base + slope * size <= FILL * available]
    while chosen and device.type == "cuda" and chosen[-1] not in peaks:
        try:
            peaks[chosen[-1]] = _measure(recipe, chosen[-1], device)
        except RecipeError:
            chosen.pop()
    if not chosen:
        raise RecipeError(
            f"a micro-batch of {sizes[0]} images takes about {base + slope * sizes[0]:,.0f} bytes, "
            f"and {available:,} are free: lower batch.norm_group, or take a smaller network or "
            "images."
        )
    size = chosen[-1]
    predicted = peaks.get(size, int(base + slope * size))
    return Fit(size, recipe.norm_group, predicted, available)


def with_micro_batch(recipe: Recipe, micro_batch: int, norm_group: int) -> Recipe:
    """The recipe with these sizes."""
    sizes = [f"batch.micro_batch={micro_batch}", f"batch.norm_group={norm_group}"]
    return change_recipe(recipe, sizes)


def _line(peaks: dict[int, int]) -> tuple[float, float]:
    """Bytes per image, and bytes without any."""
    (small, low), *more = sorted(peaks.items())
    if not more:
        return low / small, 0.0
    large, high = more[0]
    slope = max(0.0, (high - low) / (large - small))
    return slope, low - slope * small


def _available(device: torch.device, world: World) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = proc_bytes("meminfo", "MemAvailable")
    if free is None:
        raise RecipeError(
            "this system does not tell how much memory is free: give batch.micro_batch a number."
        )
    return free // world.local_size


def _measure(recipe: Recipe, size: int, device: torch.device) -> int:
    """Peak bytes of a process that takes two steps of one micro-batch.

    Raises:
        RecipeError: It ran out of memory.
    """
    sizes = [f"batch.{name}={size}" for name in ("global_batch", "micro_batch")]
    steps = ["train.steps=2", "train.epochs=null", "lr_schedule.warmup_epochs=0"]
    group = f"batch.norm_group={recipe.norm_group}"
    trial = change_recipe(recipe, [*sizes, group, *steps, f"hardware.device={device}"])
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "conadv.trainer.probe.micro_batch"],
        input=json.dumps(trial.model_dump(mode="json")),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        raise RecipeError(
            f"trying a micro-batch of {size} images failed: "
            f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        )
    return int(json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    from conadv.trainer.build import build

    trainer = build(make_recipe(json.load(sys.stdin)), download=False).trainer
    for _ in range(2):
        trainer.train_step()
    if trainer.precision.device.type == "cuda":
        print(torch.cuda.max_memory_reserved())
        return
    print(proc_bytes("self/status", "VmHWM"))


if __name__ == "__main__":
    _main()

"""What a training step of each schedule costs against an ordinary one.

Every figure is a ratio to vanilla with the same number of fresh images (with a fixed budget: the
same number of images). Steps of all schedules are interleaved and divided round by round, so a
machine that slows down for a while slows both sides of a ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import conadv
from conadv._operations import operation_counter
from conadv.bench import machine
from conadv.bench.memory import peak_bytes
from conadv.optim import LARS, param_groups
from conadv.schedules import Schedule

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vanilla": conadv.Vanilla,
    "sequential": conadv.Sequential,
    "lookahead": conadv.Lookahead,
    "recycled": conadv.Recycled,
    "recycled-budget": lambda: conadv.Recycled(budget="fixed"),
    "noise": conadv.Noise,
}
"""What is measured, by the name in the table. Each entry makes a new schedule object."""


@dataclass(frozen=True)
class Settings:
    """One benchmark: which model, on how many images, where and in which precision."""

    model: str = "cifar/resnet18"
    batch: int = 128
    image_size: int = 32
    classes: int = 10
    device: str = "cpu"
    dtype: str = "bfloat16"
    compile: bool = False

    def autocast(self) -> torch.autocast:
        """The autocast block of a step."""
        enabled = self.dtype != "float32"
        dtype = getattr(torch, self.dtype) if enabled else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=enabled)


class Stepper:
    """One schedule's model, optimizer and data, ready to take training steps."""

    def __init__(self, settings: Settings, schedule: Schedule) -> None:
        from conadv.training.models import create_model

        torch.manual_seed(0)
        self.settings = settings
        device = torch.device(settings.device)
        model = create_model(settings.model, in_chans=3, num_classes=settings.classes)
        conadv.split_norms(model)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            model.compile()
        attack = conadv.Attack(4 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
        self.adversary = conadv.Adversary(model, attack, schedule)
        self.optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=0.1)
        fresh = self.adversary.fresh_images(settings.batch)
        shape = (fresh, 3, settings.image_size, settings.image_size)
        images = ((torch.rand(shape) - 0.5) / 0.25).to(device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, settings.classes, (fresh,), device=device)

    def step(self) -> None:
        """One training step, as in a user's loop; lookahead attacks the same images again."""
        self.adversary.peek(self.images, self.labels)
        with self.settings.autocast():
            loss = self.adversary.loss(self.images, self.labels, cross_entropy)
        loss.backward()
        self.adversary.collect()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Time of one step."""
        self._synchronize()
        start = time.perf_counter()
        self.step()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.settings.device.startswith("cuda"):
            torch.cuda.synchronize()


def count_flops(settings: Settings, schedule: Schedule) -> int:
    """Floating-point operations of one step in its steady state."""
    # A compiled graph hides its operations from the counter; the mathematics is the same.
    stepper = Stepper(replace(settings, compile=False, dtype="float32"), schedule)
    stepper.step()
    with operation_counter() as counter:
        stepper.step()
    return int(counter.get_total_flops())


def run(
    model: str = "cifar/resnet18",
    batch: int = 128,
    device: str = "cpu",
    dtype: str = "bfloat16",
    *,
    repeats: int = 10,
    warmup: int = 2,
    image_size: int = 32,
    compile: bool = False,
    memory: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure every schedule against vanilla.

    Args:
        model: name as in a recipe.
        batch: images per step (the micro-batch; on one device without accumulation).
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, by autocast.
        repeats: measured rounds; each takes one step of every schedule.
        warmup: rounds before them that are not counted.
        image_size: height and width in pixels.
        compile: compile the model.
        memory: also measure peak memory, each schedule in a process of its own.
        on_progress: called with a line of text at every stage.

    Returns:
        ``{"rows": [...], "settings": {...}, "environment": {...}}``. Rows have ``schedule``,
        ``images`` per step, ``flops_ratio``, ``step_ratio`` {median, p10, p90},
        ``step_seconds_median`` and ``memory_ratio`` (null where it was not measured).
    """
    settings = Settings(model, batch, image_size, 10, device, dtype, compile)
    say = on_progress or (lambda _: None)
    flops = {}
    for name, make in SCHEDULES.items():
        say(f"counting the operations of {name}")
        flops[name] = count_flops(settings, make())
    peaks: dict[str, int | None] = dict.fromkeys(SCHEDULES)
    if memory:
        for name in SCHEDULES:
            say(f"measuring the memory of {name}")
            peaks[name] = peak_bytes(settings, name)
    steppers = {name: Stepper(settings, make()) for name, make in SCHEDULES.items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for repeat in range(warmup + repeats):
        say(f"round {repeat + 1} of {warmup + repeats}" + (" (warm-up)" * (repeat < warmup)))
        for name, stepper in steppers.items():
            seconds = stepper.seconds()
            if repeat >= warmup:
                times[name].append(seconds)
    rows = []
    for name, stepper in steppers.items():
        ratios = [a / b for a, b in zip(times[name], times["vanilla"], strict=True)]
        peak, base = peaks[name], peaks["vanilla"]
        rows.append(
            {
                "schedule": name,
                "images": stepper.adversary.diagnostics.images,
                "flops_ratio": flops[name] / flops["vanilla"],
                "step_ratio": machine.spread(ratios),
                "step_seconds_median": statistics.median(times[name]),
                "memory_ratio": peak / base if peak and base else None,
            }
        )
    return {
        "rows": rows,
        "settings": {**asdict(settings), "repeats": repeats, "warmup": warmup},
        "environment": machine.environment(device),
    }

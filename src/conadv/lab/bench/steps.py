"""What a training step of each schedule costs against an ordinary one.

Every figure is a ratio to vanilla with the same number of fresh images (with a fixed budget: the
same number of images). Steps of all schedules are interleaved and divided round by round, so a
machine that slows down for a while slows both sides of a ratio.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from conadv.lab.bench.host import host_seconds
from conadv.lab.bench.memory import peak_bytes
from conadv.lab.bench.stepper import SCHEDULES, Settings, Stepper
from conadv.lab.planning.operations import operation_counter
from conadv.schedules import Schedule
from conadv.trainer.run import environment as machine
from conadv.weights import WeightSchedule


def count_flops(settings: Settings, schedule: Schedule | WeightSchedule) -> int:
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
    compiled: bool = False,
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
        compiled: whether the model is compiled.
        memory: also measure peak memory, each schedule in a process of its own.
        on_progress: called with a line of text at every stage.

    Returns:
        ``{"rows": [...], "settings": {...}, "environment": {...}}``. Rows have ``schedule``,
        ``images`` per step, ``flops_ratio``, ``step_ratio`` {median, p10, p90},
        ``step_seconds_median``, ``host_seconds`` (processor time of the adversary's `loss` and
        `collect` beside the network's passes; null for copies of weights, whose arithmetic is as
        large as the network) and ``memory_ratio`` (null where it was not measured).
    """
    settings = Settings(model, batch, image_size, 10, device, dtype, compiled)
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
        schedule = SCHEDULES[name]()
        host = host_seconds(settings, schedule) if isinstance(schedule, Schedule) else None
        rows.append(
            {
                "schedule": name,
                "images": stepper.adversary.diagnostics.images,
                "flops_ratio": flops[name] / flops["vanilla"],
                "step_ratio": machine.spread(ratios),
                "step_seconds_median": statistics.median(times[name]),
                "host_seconds": host,
                "memory_ratio": peak / base if peak and base else None,
            }
        )
    return {
        "rows": rows,
        "settings": {**asdict(settings), "repeats": repeats, "warmup": warmup},
        "environment": machine.environment(device),
    }

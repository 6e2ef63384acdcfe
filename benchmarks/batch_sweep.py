"""Peak memory and time per image of one device from a global batch of 1,024 to 98,304.

    python benchmarks/batch_sweep.py --json benchmarks/results/batch-sweep-cpu.json

The micro-batch stays, so accumulation grows. The trainer works on made-up images that lie in
memory, the same ones and as many of them for every batch. Peak memory is that of a process of its
own; times are taken in one process, in which the batches take turns, and divided round by round. On
a CPU that is the processor time of one thread, which other programs disturb least.
Goals: memory and time per image within 5 % over the whole range for vanilla, sequential and
recycled; lookahead grows by what is pending, one bit per value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conadv.trainer.build import build
from conadv.trainer.recipe import load_recipe
from conadv.trainer.run import environment as machine
from conadv.trainer.trainer import Trainer

SCHEDULES = ("vanilla", "sequential", "lookahead", "recycled")
BATCHES = (1024, 8192, 98304)
MICRO, SIDE, CHANNELS = 128, 8, 3
IMAGES = 98_304
IMAGES_PER_TURN = 24_576
"""At least, where times are taken: a turn is a step or more."""


def overrides(schedule: str, batch: int, device: str) -> list[str]:
    """The smoke recipe, changed."""
    return [
        f"data.synthetic.size={SIDE}",
        f"data.synthetic.train_images={IMAGES}",
        "data.synthetic.test_images=16",
        "data.validation=0",
        f"batch.global_batch={batch}",
        f"batch.micro_batch={MICRO}",
        "batch.norm_group=null",
        "model.name=cifar/resnet8",
        f"method.schedule={schedule}",
        "train.epochs=3",
        "lr_schedule.warmup_epochs=0",
        f"hardware.device={device}",
    ]


def trainer_of(schedule: str, batch: int, device: str) -> Trainer:
    """After its first step, in which memory is taken."""
    trainer = build(load_recipe("smoke", overrides(schedule, batch, device))).trainer
    trainer.train_step()
    return trainer


def take_steps(trainer: Trainer, steps: int) -> None:
    """The run's length does not matter here, its steady state does."""
    for _ in range(steps):
        trainer.step = min(trainer.step, trainer.feed.total_steps - 3)
        trainer.train_step()


def memory(schedule: str, batch: int, device: str) -> None:
    """In a process of its own: a line of JSON. All batches see as many images."""
    trainer = trainer_of(schedule, batch, device)
    take_steps(trainer, IMAGES // batch)
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    else:
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(x.split()[1]) * 1024 for x in status if x.startswith("VmHWM"))
    pending = trainer.adversary.state_dict()["state"].get("pending", [])
    print(json.dumps({"peak": peak, "pending": _bytes(pending)}))


def times(schedule: str, rounds: int, device: str) -> None:
    """All batches in one process, which take turns: seconds per image, a line of JSON."""
    cpu = not device.startswith("cuda")
    clock = time.process_time if cpu else time.perf_counter
    if cpu:
        torch.set_num_threads(1)
    trainers = {batch: trainer_of(schedule, batch, device) for batch in BATCHES}
    found: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for turn in range(rounds):
        for batch in BATCHES if turn % 2 else reversed(BATCHES):
            steps = max(1, IMAGES_PER_TURN // batch)
            begin = clock()
            take_steps(trainers[batch], steps)
            if not cpu:
                torch.cuda.synchronize()
            found[batch].append((clock() - begin) / (steps * batch))
    print(json.dumps(found))


def _bytes(value: Any) -> int:
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def measure(schedule: str, rounds: int, device: str) -> list[dict[str, Any]]:
    """Memory of each batch, then the time of all of them."""

    def own(*arguments: str) -> Any:
        command = [sys.executable, __file__, "--schedule", schedule, "--device", device]
        done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    last = {batch: own("--batch", str(batch)) for batch in BATCHES}
    seconds = {int(k): v for k, v in own("--rounds", str(rounds)).items()}
    rows = []
    for batch in BATCHES:
        ratios = [a / b for a, b in zip(seconds[batch], seconds[BATCHES[0]], strict=True)]
        rows.append(
            {
                "schedule": schedule,
                "global_batch": batch,
                "seconds_per_image": statistics.median(seconds[batch]),
                "time_ratio": machine.spread(ratios),
                "peak_bytes": last[batch]["peak"],
                "memory_ratio": last[batch]["peak"] / last[BATCHES[0]]["peak"],
                "pending_bytes": last[batch]["pending"],
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cells, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--schedule", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.schedule and options.batch:
        memory(options.schedule, options.batch, options.device)
        return
    if options.schedule:
        times(options.schedule, options.rounds, options.device)
        return
    rows = []
    for schedule in SCHEDULES:
        for row in measure(schedule, options.rounds, options.device):
            rows.append(row)
            peak, pending = (row[name] / 2**20 for name in ("peak_bytes", "pending_bytes"))
            print(
                f"{schedule:10} {row['global_batch']:6,}: memory x{row['memory_ratio']:.3f} "
                f"({peak:,.0f} MiB), pending {pending:.2f} MiB, "
                f"time per image x{row['time_ratio']['median']:.3f}",
                flush=True,
            )
    if options.json:
        found = {
            "environment": machine.environment(options.device),
            "micro_batch": MICRO,
            "image": [CHANNELS, SIDE, SIDE],
            "rows": rows,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

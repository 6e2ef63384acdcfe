"""Peak memory and time per image of one device from a global batch of 1,024 to 98,304.

    python benchmarks/batch_sweep.py --json benchmarks/results/batch-sweep-cpu.json

The micro-batch stays, so accumulation grows. Every cell is the trainer on made-up images that lie
in memory, the same ones for every batch, in a process of its own (peak memory is a process's), and
sees as many images; rounds of all cells alternate and times are divided round by round.
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

from conadv.bench import machine

SCHEDULES = ("vanilla", "sequential", "lookahead", "recycled")
BATCHES = (1024, 8192, 98304)
MICRO, SIDE, CHANNELS = 128, 8, 3
IMAGES = 98_304


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


def cell(schedule: str, batch: int, device: str) -> None:
    """In a process of its own: a line of JSON for each turn."""
    import torch

    from conadv.training.build import build
    from conadv.training.recipe import load_recipe

    recipe = load_recipe("smoke", overrides(schedule, batch, device))
    trainer = build(recipe).trainer
    trainer.train_step()
    steps = max(1, IMAGES // batch)
    while True:
        begin = time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
            # The run's length does not matter here, its steady state does.
            trainer.step = min(trainer.step, trainer.feed.total_steps - 3)
        seconds = time.perf_counter() - begin
        if device.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated()
        else:
            status = Path("/proc/self/status").read_text().splitlines()
            peak = next(int(x.split()[1]) * 1024 for x in status if x.startswith("VmHWM"))
        pending = trainer.adversary.state_dict()["state"].get("pending", [])
        found = {"seconds": seconds / (steps * batch), "peak": peak, "pending": _bytes(pending)}
        print(json.dumps(found), flush=True)
        if not sys.stdin.readline():
            return


def _bytes(value: Any) -> int:
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def measure(schedule: str, rounds: int, device: str) -> list[dict[str, Any]]:
    """All batches of a schedule: each waits in its process for its turn."""
    own = [sys.executable, __file__, "--cell", schedule, "--device", device]
    processes: dict[int, subprocess.Popen[str]] = {}
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    last: dict[int, dict[str, Any]] = {}
    try:
        for turn in range(rounds):
            for batch in BATCHES:
                if turn == 0:  # started one after the other: each has the machine for itself
                    processes[batch] = subprocess.Popen(
                        [*own, "--batch", str(batch)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                process = processes[batch]
                assert process.stdin is not None and process.stdout is not None
                if turn:
                    process.stdin.write("again\n")
                    process.stdin.flush()
                last[batch] = json.loads(process.stdout.readline())
                times[batch].append(last[batch]["seconds"])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    rows = []
    for batch in BATCHES:
        ratios = [a / b for a, b in zip(times[batch], times[BATCHES[0]], strict=True)]
        rows.append(
            {
                "schedule": schedule,
                "global_batch": batch,
                "seconds_per_image": statistics.median(times[batch]),
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        cell(options.cell, options.batch, options.device)
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

"""Kill training at random moments, start it again, and compare with a run never interrupted.

    python benchmarks/kill_resume.py --kills 50 --json benchmarks/results/kill-resume.json

Every schedule trains on one process and on two. Half of the kills (SIGKILL, all processes at once)
come at a random time after the start, half while a checkpoint is being written. The same command
is started again each time; in the end ``metrics.jsonl`` and every weight have to be the same to
the last bit. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from conadv.trainer.run import environment as machine

WEIGHTS = "weights-recycled"
SCHEDULES = ("vanilla", "sequential", "lookahead", "recycled", "noise", WEIGHTS)
LONGEST = 600.0
"""Seconds after which a run that does not end counts as hung."""
RECIPE = (
    "name=killed",
    "data.synthetic.size=8",
    "data.synthetic.train_images=100",
    "data.synthetic.test_images=16",
    "data.synthetic.classes=2",
    "data.validation=0.15",
    "data.crop_padding=1",
    "data.flip=true",
    "data.order_tail=keep",
    "batch.global_batch=32",
    "batch.micro_batch=8",
    "optimizer.name=lars",
    "optimizer.lr=0.5",
    "train.ema_decay=0.9",
    "evaluation.every_epochs=1.3",
    "evaluation.robust_images=8",
    "checkpoint.every_steps=2",
    "checkpoint.every_minutes=null",
    "hardware.device=cpu",
    "hardware.timeout=60",
)


def start(out: Path, schedule: str, ranks: int, steps: int) -> list[subprocess.Popen[bytes]]:
    """The training command, one process per rank, without a launcher that could interfere."""
    more = [f"method.schedule={schedule}", f"train.steps={steps}"]
    if schedule == WEIGHTS:
        more[0:1] = ["method.schedule=vanilla", "weights.schedule=recycled", "weights.rho=0.05"]
    command = [sys.executable, "-m", "conadv", "train", "smoke", *RECIPE, *more]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    limits = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(ranks)}
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return [
            subprocess.Popen(
                [*command, "--out", str(out), "--resume"],
                stdout=log,
                stderr=log,
                env={**os.environ, **limits, **meeting, "RANK": str(r), "LOCAL_RANK": str(r)},
            )
            for r in range(ranks)
        ]


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for all; exit codes."""
    deadline = time.monotonic() + LONGEST
    try:
        return [p.wait(max(1.0, deadline - time.monotonic())) for p in processes]
    finally:
        kill(processes)


def kill(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """SIGKILL to all; whether one was still running."""
    running = [p for p in processes if p.poll() is None]
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    for process in running:
        process.wait()
    return bool(running)


def writing(out: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((out / "checkpoints").glob("*.partial"))


def interrupt(
    out: Path, processes: Sequence[subprocess.Popen[bytes]], wait: float, in_write: bool
) -> tuple[bool, bool]:
    """Let it run, then kill it: (whether it was still running, whether it was writing)."""
    begin = time.monotonic()
    while any(p.poll() is None for p in processes):
        waited = time.monotonic() - begin
        if waited >= wait and (not in_write or writing(out)):
            break
        time.sleep(0.0005 if in_write and waited >= wait else 0.01)
    at_write = writing(out)
    return kill(processes), at_write


def difference(found: Path, expected: Path) -> str | None:
    """What is not the same in two finished runs, or None."""
    if (found / "metrics.jsonl").read_bytes() != (expected / "metrics.jsonl").read_bytes():
        return "metrics.jsonl"
    states = [
        torch.load(run / "checkpoints/last.pt", weights_only=True)["trainer"]
        for run in (found, expected)
    ]
    for part in ("model", "ema"):
        for key, value in states[1][part].items():
            if not torch.equal(value, states[0][part][key]):
                return f"{part} {key}"
    return None


def one_case(
    folder: Path, schedule: str, ranks: int, kills: int, steps: int, draw: random.Random
) -> dict[str, object]:
    """Train unbroken, then with so many kills; what came of it."""
    whole, broken = folder / f"{schedule}-{ranks}-whole", folder / f"{schedule}-{ranks}-broken"
    begin = time.monotonic()
    codes = finish(start(whole, schedule, ranks, steps))
    seconds = time.monotonic() - begin
    row: dict[str, object] = {"schedule": schedule, "ranks": ranks, "kills": 0, "in_write": 0}
    if any(codes):
        return row | {"difference": f"the unbroken run failed with {codes}"}
    done = in_write = attempts = 0
    while done < kills and attempts < 4 * kills:
        attempts += 1
        processes = start(broken, schedule, ranks, steps)
        running, at_write = interrupt(broken, processes, draw.uniform(0, seconds), done % 2 == 1)
        if not running:  # it came to its end first: from the start again
            broken = folder / f"{schedule}-{ranks}-broken-{attempts}"
            continue
        done, in_write = done + 1, in_write + at_write
    codes = finish(start(broken, schedule, ranks, steps))
    wrong = f"the last start failed with {codes}" if any(codes) else difference(broken, whole)
    return row | {"kills": done, "in_write": in_write, "difference": wrong}


def main(arguments: Sequence[str] | None = None) -> int:
    """Every schedule on every number of ranks; the kills are shared out among them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of all cases together")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    cases = [(schedule, ranks) for schedule in options.schedules for ranks in options.ranks]
    draw = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (schedule, ranks) in enumerate(cases):
            kills = options.kills // len(cases) + (number < options.kills % len(cases))
            row = one_case(Path(folder), schedule, ranks, kills, options.steps, draw)
            rows.append(row)
            same = row["difference"] or "identical"
            print(
                f"{schedule}, {ranks} process{'es' if ranks > 1 else ''}: {row['kills']} kills, "
                f"{row['in_write']} of them inside a checkpoint write: {same}",
                flush=True,
            )
            if row["difference"]:
                log = Path(folder) / f"{schedule}-{ranks}-broken.log"
                print(log.read_text()[-3000:] if log.exists() else "no log", file=sys.stderr)
    if options.json:
        found = {"environment": machine.environment(), "steps": options.steps, "rows": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(row["difference"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

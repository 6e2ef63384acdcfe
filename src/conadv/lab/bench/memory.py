"""Peak memory of a few training steps, in a process of its own.

On a GPU the allocator knows its peak. On a CPU Linux knows the largest resident size of a process;
a fresh process per measurement keeps one schedule's peak out of the next one's, and what the
imports take is subtracted. Other systems: not measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from conadv.errors import ConadvError

if TYPE_CHECKING:
    from conadv.lab.bench.stepper import Settings


STEPS = 3
"""Training steps of a measurement."""


def peak_bytes(settings: Settings, schedule: str) -> int | None:
    """Peak bytes of training steps above what the imports take, or None if unknown."""
    request = json.dumps({"settings": asdict(settings), "schedule": schedule})
    done = subprocess.run(
        [sys.executable, "-m", "conadv.lab.bench.memory", request],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        failed = ConadvError(f"measuring the memory of {schedule} failed: {last}")
        failed.add_note(done.stderr[-2000:])  # shown with a traceback
        raise failed
    value = json.loads(done.stdout.splitlines()[-1])
    return None if value is None else int(value)


def _forget_peak() -> bool:
    """Reset the peak resident size to the present one: imports peak higher than small steps."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _main(request: str) -> None:
    import torch

    from conadv.lab.bench.stepper import SCHEDULES, Settings, Stepper
    from conadv.trainer.run.environment import proc_bytes

    asked = json.loads(request)
    settings = Settings(**asked["settings"])
    known = _forget_peak()
    before = proc_bytes("self/status", "VmRSS")
    stepper = Stepper(settings, SCHEDULES[asked["schedule"]]())
    for _ in range(STEPS):
        stepper.step()
    if settings.device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated())
        return
    after = proc_bytes("self/status", "VmHWM")
    print(json.dumps(after - before if known and after and before else None))


if __name__ == "__main__":
    _main(sys.argv[1])

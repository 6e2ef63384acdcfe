"""A profiler trace of a few training steps, for chrome://tracing and Perfetto."""

import os
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import profile, schedule

from conadv._files import in_utf8
from conadv.trainer.run.output import tell

WAIT, WARMUP, STEPS = 3, 1, 3
"""Steps that are left alone, that only warm the profiler up, and that are recorded."""


class StepTrace:
    """Records a few steps after the first ones; tell it about every step.

    Args:
        path: The trace; other ranks than the first put their number before the ending.
        rank: Of this process.
        total: Steps of the run that are to come; a short run is recorded as far as it goes.
    """

    def __init__(self, path: Path, rank: int, total: int) -> None:
        self.path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        wait = WAIT if total >= WAIT + WARMUP + STEPS else 0
        active = max(1, min(STEPS, total - wait - WARMUP))
        self._profile = profile(
            schedule=schedule(wait=wait, warmup=min(WARMUP, total - 1), active=active, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,  # one cycle, so this changes nothing but a warning of some releases
        )
        self._profile.start()

    def step(self) -> None:
        """One step is done."""
        self._profile.step()

    def close(self) -> None:
        """Write what was recorded, if the run ended before the last of the steps."""
        self._profile.stop()

    def _write(self, recorded: Any) -> None:
        ending = ".json.gz" if self.path.suffix == ".gz" else ".json"
        try:
            with (
                in_utf8(self.path.parent) as folder,
                tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as made,
            ):
                recorded.export_chrome_trace(f"{made}/trace{ending}")
                os.replace(f"{made}/trace{ending}", self.path)
        except OSError as error:
            tell(f"warning: {self.path} cannot be written ({error.strerror or error}).")

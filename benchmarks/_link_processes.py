"""The two processes of `link_overlap.py`, seen from the one that gives the commands."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import _link_figures as figures
from _link_network import Link

RANK = Path(__file__).with_name("_link_rank.py")


class Ranks:
    """The two processes and what joins them; both are gone after the ``with`` block.

    Args:
        link: what joins them.
        options: for the ranks: model, widths, batch, image_size, bucket_mb.
    """

    def __init__(self, link: Link, options: dict[str, Any]) -> None:
        self.link = link
        self._options = options
        self._processes: list[subprocess.Popen[str]] = []
        self._folder = tempfile.TemporaryDirectory()
        self.cores = _cores()
        self.gradient_bytes = 0

    def __enter__(self) -> Ranks:
        try:
            for rank in range(2):
                self._processes.append(self._start(rank))
            self.link.connect([process.pid for process in self._processes])
            meeting = str(Path(self._folder.name) / "meeting")
            first, _ = self.ask({**self._options, "meeting": meeting})
            self.gradient_bytes = first["gradient_bytes"]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, where: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self, rank: int) -> subprocess.Popen[str]:
        limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # Pinned before the first thread is started: gloo's threads share the rank's core.
        pin = partial(os.sched_setaffinity, 0, {self.cores[rank]}) if self.cores else None
        return subprocess.Popen(
            [*self.link.prefix(), sys.executable, str(RANK), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pin,
            start_new_session=True,  # Ctrl-C is for this process, which then ends them
            env={**os.environ, **limits, "GLOO_SOCKET_IFNAME": self.link.interface},
        )

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()
        self._folder.cleanup()

    def ask(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        """Give both the same command; both answers.

        Raises:
            RuntimeError: a rank has ended; what it said is on the standard error.
        """
        line = json.dumps(command) + "\n"
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
            found = [process.stdout.readline() for process in self._processes]  # type: ignore[union-attr]
        except BrokenPipeError:
            found = [""]
        if "" in found:
            raise RuntimeError("A rank has ended; its message is above.")
        return [json.loads(text) for text in found]

    def limit(self, bits_per_second: float | None) -> None:
        """Set the link's rate."""
        if not self.link.limit(bits_per_second):
            self.ask({"do": "limit", "bits_per_second": bits_per_second})

    def block(self, schedule: str, steps: int, communicate: bool) -> figures.Block:
        """Some steps of a schedule."""
        command = {"do": "block", "schedule": schedule, "steps": steps, "communicate": communicate}
        return figures.slower_rank([found["phases"] for found in self.ask(command)])

    def reduce_seconds(self) -> float:
        """Time of an all-reduce of all gradients alone."""
        answers = self.ask({"do": "reduce", "times": 5})
        first, second = (answer["seconds"] for answer in answers)
        slower: list[float] = [max(pair) for pair in zip(first, second, strict=True)]
        return statistics.median(slower)


def _cores() -> list[int]:
    """Two cores this process may use, or none where it cannot be said or there is one."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:2] if len(allowed) > 1 else []

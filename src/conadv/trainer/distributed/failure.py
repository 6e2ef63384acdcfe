"""Find the process that is gone or stuck from signs of life: no clock, no network."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self

State = Literal["working", "waiting", "lost", "done"]


@dataclass(frozen=True)
class Note:
    """What processes leave for one another, as text."""

    def packed(self) -> str:
        """Pack into text."""
        return json.dumps(asdict(self))

    @classmethod
    def unpacked(cls, text: str | bytes) -> Self:
        """Read what :meth:`packed` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Beat(Note):
    """What a process says of itself, every second or so."""

    sequence: int = 0
    """Grows with every beat."""
    waits: int = 0
    """How often it has come to a place where all processes wait for each other."""
    state: State = "working"
    """``waiting`` for the others, ``lost``: its connection to them broke, ``done``: leaving."""
    at: str = ""
    """What it is doing, such as ``taking step 41``."""
    line: str = ""
    """Where its main thread is: file, line, function."""
    name: str = ""
    """Process number and machine."""


@dataclass(frozen=True)
class Verdict(Note):
    """Why all processes stop."""

    message: str
    """Names the ranks at fault, and the cause."""
    teller: int
    """Rank that prints it."""


SILENCE = 60.0
"""Seconds without a beat after which a process counts as gone."""


class Judge:
    """Looks at the beats of all ranks again and again, and says when they tell of a failure.

    Only its own clock counts, so the machines' clocks need not agree.

    Args:
        size: number of processes.
        timeout: seconds that the others wait for one that does not come.
        evidence: seconds without a beat after which a process counts as gone, where another
            process's connection broke.
    """

    def __init__(self, size: int, timeout: float, *, evidence: float = 5.0) -> None:
        self.size, self.timeout = size, timeout
        self.silence, self.evidence = min(SILENCE, timeout), min(evidence, timeout)
        self._beats: dict[int, Beat] = {}
        self._changed: dict[int, float] = {}
        """When each rank's beat was last another one."""
        self._moved = 0.0
        """When any rank last came to a meeting place or left one."""
        self._lost_since: float | None = None

    def look(self, beats: Sequence[Beat], now: float) -> Verdict | None:
        """One look, at seconds ``now`` of any steady clock."""
        self._follow(beats, now)
        if all(beat.state == "done" for beat in beats):
            return None
        lost = [r for r, beat in enumerate(beats) if beat.state == "lost"]
        if lost and self._lost_since is None:
            self._lost_since = now
        patience = self.evidence if lost else self.silence
        gone = [r for r in self._active(beats) if now - self._changed[r] > patience]
        if gone:
            return self._gone(gone, min(now - self._changed[r] for r in gone))
        # Twice, for silence takes as long to show, and begins no earlier.
        if self._lost_since is not None and now - self._lost_since > 2 * self.evidence:
            return self._left_behind(lost)
        if now - self._moved > self.timeout:
            return self._stuck(beats, now)
        return None

    def _follow(self, beats: Sequence[Beat], now: float) -> None:
        for rank, beat in enumerate(beats):
            before = self._beats.get(rank)
            if before is None or (before.waits, before.state) != (beat.waits, beat.state):
                self._moved = now
            if before is None or before.sequence != beat.sequence:
                self._changed[rank] = now
            self._beats[rank] = beat

    def _active(self, beats: Sequence[Beat]) -> list[int]:
        return [r for r, beat in enumerate(beats) if beat.state != "done"]

    def _gone(self, ranks: list[int], seconds: float) -> Verdict:
        one = len(ranks) == 1
        return self._verdict(
            ranks,
            f"{self._names(ranks)} {'is' if one else 'are'} gone: no sign of life for "
            f"{seconds:.0f} s{self._doing(ranks[0])}. Killed, perhaps by the system for want of "
            "memory, or the machine is lost.",
        )

    def _left_behind(self, lost: list[int]) -> Verdict:
        """Some lost their connection, and everybody is alive: the others did not come."""
        absent = [r for r in range(self.size) if r not in lost]
        if not absent:
            return self._network()
        return self._verdict(
            absent,
            f"{self._names(absent)} did not come where the others waited{self._doing(absent[0])}.",
        )

    def _stuck(self, beats: Sequence[Beat], now: float) -> Verdict | None:
        active = self._active(beats)
        waiting = [r for r in active if beats[r].state == "waiting"]
        if not waiting:
            return None  # all compute: a long compilation, say
        behind = [r for r in active if r not in waiting]
        if not behind:
            first = min(beats[r].waits for r in active)
            behind = [r for r in active if beats[r].waits == first]
            if len(behind) == len(active):
                return self._network()
        # Killed, and the others' connections to it did not break: it is not stuck.
        silent = [r for r in behind if now - self._changed[r] > self.silence / 2]
        if silent:
            return self._gone(silent, min(now - self._changed[r] for r in silent))
        one = len(behind) == 1
        return self._verdict(
            behind,
            f"{self._names(behind)} {'is' if one else 'are'} stuck: the others have waited for "
            f"{'it' if one else 'them'} for {self.timeout:g} s (hardware.timeout)"
            f"{self._doing(behind[0])}.",
        )

    def _network(self) -> Verdict:
        return self._verdict(
            [],
            f"all {self.size} processes are alive and wait for each other, but nothing arrives: "
            f"is the network between their machines in order, does a GPU hang?{self._doing(0)}",
        )

    def _names(self, ranks: list[int], shown: int = 8) -> str:
        said = [f"{r} ({self._beats[r].name})" for r in ranks[:shown]]
        more = f" and {len(ranks) - shown} more" if len(ranks) > shown else ""
        return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(said)}{more} of {self.size}"

    def _doing(self, rank: int) -> str:
        beat = self._beats[rank]
        said = f" {beat.at}" * bool(beat.at) + f" at {beat.line}" * bool(beat.line)
        return f"; last seen{said}" if said else ""

    def _verdict(self, ranks: list[int], message: str) -> Verdict:
        healthy = [r for r in range(self.size) if r not in ranks]
        return Verdict(message, healthy[0] if healthy else 0)

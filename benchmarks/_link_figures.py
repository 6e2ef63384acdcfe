"""From the seconds of single steps to the figures of `link_overlap.py`, and its bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from conadv.trainer.run import environment as machine

Phases = Sequence[Sequence[float]]
"""Seconds of each phase of each step, shape (steps, phases)."""
Block = list[list[float]]
"""The same, of the slower rank in each step."""

PHASES = ("forward and backward", "attack ahead", "wait", "update")
"""Of a step, in this order. Sequential's attack belongs to the first one."""
WEIGHTS = "recycled weights"
"""Copies of weights: the mean of old gradients travels as well, into the next step."""
HIDDEN_BAR = 0.20
"""At the matched rate: lookahead's exposed communication over sequential's, at most."""
SLOWER_BAR = 1.02
"""Step time of lookahead over sequential's, at most, at every rate: not slower, but for the noise
of a median over interleaved rounds."""
WEIGHTS_BAR = 0.05
"""What recycled copies of weights may expose beyond ordinary training, as a share of a step."""
CLOSE = 0.15
"""The matched rate: sequential's exposed communication is the attack's time, give or take."""


def slower_rank(ranks: Sequence[Phases]) -> Block:
    """Of each step the phases of the rank that took longer: the other one has to wait for it."""
    return [list(max(step, key=sum)) for step in zip(*ranks, strict=True)]


def step_seconds(block: Block) -> float:
    """Median time of a step in a block."""
    return statistics.median(sum(step) for step in block)


def rate_of(factor: float, gradient_bytes: int, attack_seconds: float) -> float:
    """Bits per second at which a link carries all gradients in `factor` times the attack's time.

    Two ranks: in a ring all-reduce each sends 2 (n - 1) / n = 1 times the gradients' bytes.
    """
    return 8 * gradient_bytes / (factor * attack_seconds)


def matched_factor(
    exposed: Callable[[float], float], attack_seconds: float, start: float, tries: int = 4
) -> float:
    """The factor of `rate_of` at which sequential exposes about as much as the attack takes.

    Once the backward pass covers no more of it, every further second on the link is exposed: the
    missing time is the missing factor, in units of the attack's time.

    Args:
        exposed: measures sequential's exposed communication at a factor, in seconds.
        attack_seconds: what it should be.
        start: first factor tried.
        tries: at most so many measurements.
    """
    factor = start
    for _ in range(tries):
        missing = 1.0 - exposed(factor) / attack_seconds
        if abs(missing) <= CLOSE / 2:
            break
        factor = max(0.1, factor + missing)
    return factor


def of_schedule(silent: Sequence[Block], talking: Sequence[Block]) -> dict[str, Any]:
    """Figures of one schedule at one rate, from its blocks of each round, in seconds.

    Args:
        silent: blocks without all-reduce.
        talking: blocks with it, of the same rounds.
    """
    pairs = zip(silent, talking, strict=True)
    steps = [[sum(step) for block in blocks for step in block] for blocks in (talking, silent)]
    exposed = [step_seconds(on) - step_seconds(off) for off, on in pairs]
    return {
        "step": machine.spread(steps[0]),
        "compute": machine.spread(steps[1]),
        "exposed": machine.spread(exposed),
        "phases": {
            name: {
                "step": statistics.median(step[i] for block in talking for step in block),
                "compute": statistics.median(step[i] for block in silent for step in block),
            }
            for i, name in enumerate(PHASES)
        },
    }


def over_rounds(left: Sequence[Block], right: Sequence[Block]) -> dict[str, float]:
    """Step time of one schedule over that of another, round by round."""
    ratios = [step_seconds(a) / step_seconds(b) for a, b in zip(left, right, strict=True)]
    return machine.spread(ratios)


def attack_of(row: dict[str, Any]) -> float:
    """Seconds of lookahead's attack at one rate, with nothing on the link."""
    return float(row["schedules"]["lookahead"]["phases"]["attack ahead"]["compute"])


def exposed_of(row: dict[str, Any], schedule: str) -> float:
    """Seconds of communication that a schedule exposes at one rate."""
    return float(row["schedules"][schedule]["exposed"]["median"])


def judge(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the bars say.

    Returns:
        ``bits_per_second``: the limited rate at which sequential's exposed communication is nearest
        to the attack's time; ``exposed_over_attack``: their ratio there;
        ``lookahead_over_sequential_exposed``: the ratio of what the two expose there; ``missed``:
        one sentence for each bar that is missed.
    """

    def ratio(row: dict[str, Any]) -> float:
        return exposed_of(row, "sequential") / attack_of(row)

    limited = [row for row in rows if row["bits_per_second"] is not None]
    nearest = min(limited, key=lambda row: abs(ratio(row) - 1.0))
    share = exposed_of(nearest, "lookahead") / exposed_of(nearest, "sequential")
    missed = []
    if abs(ratio(nearest) - 1.0) > CLOSE:
        missed.append(
            f"no rate at which sequential exposes about the attack's time (nearest: "
            f"{ratio(nearest):.2f} of it at {rate_text(nearest['bits_per_second'])})"
        )
    if share > HIDDEN_BAR:
        missed.append(f"lookahead exposes {share:.0%} of what sequential does")
    for row in rows:
        if (slower := row["lookahead_over_sequential"]["median"]) > SLOWER_BAR:
            rate = rate_text(row["bits_per_second"])
            missed.append(f"lookahead takes {slower:.3f} times as long as sequential at {rate}")
        if WEIGHTS in row["schedules"]:
            more = exposed_of(row, WEIGHTS) - exposed_of(row, "vanilla")
            if more > WEIGHTS_BAR * float(row["schedules"][WEIGHTS]["step"]["median"]):
                rate = rate_text(row["bits_per_second"])
                missed.append(f"{WEIGHTS} expose {1000 * more:.0f} ms more than vanilla at {rate}")
    return {
        "bits_per_second": nearest["bits_per_second"],
        "exposed_over_attack": ratio(nearest),
        "lookahead_over_sequential_exposed": share,
        "missed": missed,
    }


def rate_text(bits_per_second: float | None) -> str:
    """A rate as people write it."""
    return "no limit" if bits_per_second is None else f"{bits_per_second / 1e6:.0f} Mbit/s"

"""How accuracies, differences and verdicts are written."""

from collections.abc import Mapping, Sequence
from typing import Any

from conadv.lab.evidence import Paired
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.text import MISSING, percent, points


def accuracy(cell: Cell, name: str) -> str:
    """Mean and standard deviation in per cent, over the seeds."""
    text, spread = percent(cell.mean(name)), cell.spread(name)
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def difference(found: Paired | None) -> str:
    """Points and their interval of 95 %: ``+1.2 (+0.3 to +2.1)``."""
    if found is None:
        return MISSING
    return f"{points(found.value)}{interval(found)}"


def interval(found: Paired) -> str:
    """Interval of 95 %, in points, in brackets after a figure; empty for a single seed."""
    return f" ({between(found.interval)})" if found.interval else ""


def between(ends: Sequence[float] | None) -> str:
    """Ends of an interval in points: ``+0.3 to +2.1``; a dash where there is none."""
    return MISSING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def judged_columns() -> tuple[str, ...]:
    """Heads of :func:`judged_row`."""
    return ("Hypothesis", "Points", "Interval, 95 %", "By resampling", "p", "Seeds", "Verdict")


def judged_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A verdict of ``summary.json``: what was claimed, what was found, what that decides."""
    than, small = _compared(one)
    claim = str(one["claim"]).replace("_", " ")
    verdict = str(one["verdict"])
    if verdict == "undecided" and one["visible"] is not None:
        verdict += f", could have seen {100 * one['visible']:.1f} points"
    if one["exploratory"]:
        verdict += f" (exploratory: {one['exploratory']})"
    p = one["p"]
    return (
        f"{one['name']}: {one['method']} at {one['batch']:,}, {claim}, than {than}{small}",
        points(one["value"]),
        between(one["interval"]),
        between(one["bootstrap"]),
        MISSING if p is None else f"{p:.2g}",
        f"{one['seeds']} of {one['seeds_expected']}",
        verdict,
    )


def judged_sentence(one: Mapping[str, Any]) -> str:
    """A verdict as a headline, to which the table under it gives the rest."""
    than, small = _compared(one)
    return (
        f"{one['method']} at batch {one['batch']:,} against {than}{small}: {points(one['value'])} "
        f"points ({between(one['interval'])}), {one['verdict']}."
    )


def _compared(one: Mapping[str, Any]) -> tuple[str, str]:
    than = f"{one['than']}" + (f" at {one['than_batch']:,}" if one["than_batch"] else "")
    return than, f" (small batch {one['small_batch']:,})" if one["small_batch"] else ""

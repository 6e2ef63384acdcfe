"""Cost bars: compute and step time as multiples of ordinary training at the same batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from conadv.report.cells import Cell, baseline, relative
from conadv.report.text import amount, count, ratio, seconds

_MEASURES = (
    ("Compute", "compute", amount, "forward and backward passes of one image, attacks included"),
    ("Step time", "step_seconds_median", seconds, "median over the steps, evaluation left out"),
)


@dataclass(frozen=True)
class Bar:
    """One bar: a method's cost as a share of the longest bar, in per cent."""

    cell: Cell
    width: float
    value: str
    absolute: str


@dataclass(frozen=True)
class BarGroup:
    """All bars of one measure at one batch size; ``one`` is where 1× lies, in per cent."""

    title: str
    note: str
    one: float
    bars: tuple[Bar, ...]


def cost_bars(everything: Sequence[Cell]) -> list[BarGroup]:
    """Bars for every batch size at which something stands beside ordinary training."""
    groups = []
    for reference in everything:
        if baseline(reference, everything) is not reference:
            continue
        peers = [cell for cell in everything if baseline(cell, everything) is reference]
        for title, name, write, note in _MEASURES:
            known = [
                (cell, multiple)
                for cell in peers
                if (multiple := relative(cell, everything, name)) is not None
            ]
            if len(known) < 2:
                continue
            longest = max(multiple for _, multiple in known)
            bars = tuple(
                Bar(cell, 100 * multiple / longest, ratio(multiple), write(cell.mean(name)))
                for cell, multiple in known
            )
            groups.append(
                BarGroup(f"{title}, batch {count(reference.batch)}", note, 100 / longest, bars)
            )
    return groups

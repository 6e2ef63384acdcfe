"""Results as plain tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conadv.report.cells import Cell, cells, relative
from conadv.report.runs import Run
from conadv.report.text import amount, count, percent, ratio, seconds

COLUMNS = ("Method", "Batch", "Test accuracy", "Robust accuracy", "Compute", "Step time")


@dataclass(frozen=True)
class Row:
    """One setting, written out in the order of :data:`COLUMNS`."""

    cell: Cell
    values: tuple[str, ...]


def rows(everything: Sequence[Cell]) -> list[Row]:
    """Write out every setting; costs also as multiples of ordinary training at the same batch."""
    return [
        Row(
            cell,
            (
                cell.key.method,
                count(cell.batch),
                _accuracy(cell, "test_accuracy"),
                _accuracy(cell, "robust_accuracy"),
                _cost(cell, everything, "compute", amount),
                _cost(cell, everything, "step_seconds_median", seconds),
            ),
        )
        for cell in everything
    ]


def markdown_table(results: Iterable[Run | Mapping[str, Any]]) -> str:
    """A Markdown table for a README: one row per setting, seeds as mean and spread.

    Args:
        results: Runs, or contents of ``result.json`` files.

    Returns:
        The table, ending in a line break.
    """
    runs = [
        item if isinstance(item, Run) else Run(Path(str(item.get("name", ""))), result=item)
        for item in results
    ]
    table: list[tuple[str, ...]] = [COLUMNS, ("---", "---:", "---:", "---:", "---:", "---:")]
    table += [row.values for row in rows(cells(runs))]
    return "".join(f"| {' | '.join(map(escape, line))} |\n" for line in table)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\|*_`[]<>":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _accuracy(cell: Cell, name: str) -> str:
    spread = cell.spread(name)
    text = percent(cell.mean(name))
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def _cost(cell: Cell, everything: Sequence[Cell], name: str, write: Any) -> str:
    multiple = relative(cell, everything, name)
    text = str(write(cell.mean(name)))
    return text if multiple is None else f"{ratio(multiple)} ({text})"

"""Results as plain tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conadv.lab.report.runs import Run
from conadv.lab.report.study.cells import Cell, cells, relative
from conadv.lab.report.study.wording import accuracy
from conadv.lab.report.text import amount, count, ratio, seconds

TESTED = {"test_accuracy": "Test accuracy", "robust_accuracy": "Robust accuracy"}
HELD_OUT = {"val_accuracy": "Held-out accuracy"}


@dataclass(frozen=True)
class Row:
    """One setting, written out in the order of :func:`columns`.

    Attributes:
        cell: The setting.
        values: The words.
        shares: By position of a value: the accuracy that it is, as a fraction.
    """

    cell: Cell
    values: tuple[str, ...]
    shares: Mapping[int, float | None]


def columns(everything: Sequence[Cell]) -> tuple[str, ...]:
    """Titles of the columns of :func:`rows`."""
    return ("Method", "Batch", *accuracies(everything).values(), "Compute", "Step time")


def accuracies(everything: Sequence[Cell]) -> Mapping[str, str]:
    """What is shown, and its title: of test images, or of those held out if no test was made."""
    known = {name for name in (*TESTED, *HELD_OUT) for cell in everything if cell.values(name)}
    return HELD_OUT if known and known <= set(HELD_OUT) else TESTED


def rows(everything: Sequence[Cell]) -> list[Row]:
    """Write out every setting; costs also as multiples of ordinary training at the same batch."""
    measured = accuracies(everything)
    return [
        Row(
            cell,
            (
                cell.key.method,
                count(cell.batch),
                *(accuracy(cell, name) for name in measured),
                _cost(cell, everything, "compute", amount),
                _cost(cell, everything, "step_seconds_median", seconds),
            ),
            {place: cell.mean(name) for place, name in enumerate(measured, start=2)},
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
    settings = cells(runs)
    return markdown_lines(columns(settings), [row.values for row in rows(settings)])


def markdown_lines(head: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    """A table in Markdown; the first ``labels`` columns hold words, the others numbers."""
    rule = ["---"] * labels + ["---:"] * (len(head) - labels)
    lines = [head, rule, *([escape(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\|*_`[]<>":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _cost(cell: Cell, everything: Sequence[Cell], name: str, write: Any) -> str:
    multiple = relative(cell, everything, name)
    text = str(write(cell.mean(name)))
    return text if multiple is None else f"{ratio(multiple)} ({text})"

"""How commands show things."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conadv._words import fitted, width_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GAP = 2
"""Columns between those of a table."""
SHORT = 16
"""Characters up to which a cell of a table is not broken."""


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; a dash where it was not measured."""
    return "-" if fraction is None else f"{fraction:.2%}"


def by_numbers(text: str) -> list[tuple[bool, int, str]]:
    """A key that sorts the numbers in names as numbers, ``4k`` being 4,000: 8k before 32k."""
    parts = re.split(r"(\d+k?(?![a-z0-9]))", text)
    return [
        (True, int(part.removesuffix("k")) * (1000 if part.endswith("k") else 1), "")
        if part[:1].isdigit() and re.fullmatch(r"\d+k?", part)
        else (False, 0, part)
        for part in parts
    ]


def quote(path: Path) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def say(text: str) -> None:
    """Print plain text on standard output: in the width of a terminal, elsewhere as it is."""
    print(fitted(text, width_of(sys.stdout)))


def facts(rows: Mapping[str, str]) -> None:
    """Print names and what is known of each, on standard output."""
    from rich.table import Table

    shown = Table.grid(padding=(0, GAP))
    shown.add_column(no_wrap=True)
    for name, value in rows.items():
        shown.add_row(name, value)
    _console().print(shown, highlight=False, markup=False)


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as a table on standard output; the columns are the keys of the first row.

    Long text is broken at spaces where a terminal is narrow. What does not fit even so becomes
    several tables that begin with the same column, or, where no two fit, a paragraph for each row.
    """
    console = _console()
    columns = list(rows[0]) if rows else []
    cells = {column: [_cell(row.get(column)) for row in rows] for column in columns}
    numeric = {c for c in columns[1:] if all(_is_number(row.get(c)) for row in rows)}
    if title:
        console.print(title, style="italic", highlight=False, markup=False)
    parts = _parts(cells, console.width)
    if any(_needed(part) > console.width for part in parts):
        _blocks(console, cells)
        return
    for number, part in enumerate(parts):
        console.print("\n" * (number > 0), end="")
        console.print(_drawn(part, numeric, console.width), highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A pipe has no width: long lines stay whole.
    return console if console.is_terminal else Console(width=240)


Cells = dict[str, list[str]]
"""The cells below each head of a table."""


def _parts(cells: Cells, width: int) -> list[Cells]:
    """As many columns together as fit, the first of all in front."""
    first = dict(list(cells.items())[:1])
    parts = [first]
    for column, values in list(cells.items())[1:]:
        more = {**parts[-1], column: values}
        if len(parts[-1]) == 1 or _needed(more) <= width:
            parts[-1] = more
        else:
            parts.append({**first, column: values})
    return parts


def _needed(cells: Cells) -> int:
    return sum(_least(column, values) + GAP for column, values in cells.items())


def _least(column: str, values: Sequence[str]) -> int:
    """Characters that a column cannot do without: words stay whole, and so do short cells."""
    whole = [value if len(value) <= SHORT else max(value.split(), key=len) for value in values]
    return max(map(len, [*column.split(), *whole, "-"]))


def _drawn(cells: Cells, numeric: set[str], width: int) -> Table:
    """A table, of which the widest columns give way first."""
    from rich.table import Table

    widths = {column: max(map(len, [column, *values])) for column, values in cells.items()}
    spare = {column: widths[column] - _least(column, values) for column, values in cells.items()}
    for _ in range(sum(widths.values()) + GAP * len(widths) - width):
        most = max(spare, key=lambda column: spare[column])
        widths[most], spare[most] = widths[most] - 1, spare[most] - 1
    shown = Table(box=None, header_style="bold")
    for column in cells:
        justify: Any = "right" if column in numeric else "left"
        shown.add_column(column, justify=justify, width=widths[column])
    for row in zip(*cells.values(), strict=True):
        shown.add_row(*row)
    return shown


def _blocks(console: Console, cells: Cells) -> None:
    """One paragraph per row."""
    first, *others = cells
    for number, head in enumerate(cells[first]):
        console.print(head, style="bold", highlight=False, markup=False, soft_wrap=True)
        for column in others:
            say(f"- {column}: {cells[column][number]}")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float | Mapping)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"
    if isinstance(value, Mapping):
        return _spread(value)
    return str(value)


def _spread(value: Mapping[str, Any]) -> str:
    """A median with its tenth and ninetieth percentile, or any other mapping."""
    if {"median", "p10", "p90"} <= set(value):
        return f"{value['median']:.3f} [{value['p10']:.3f}, {value['p90']:.3f}]"
    return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())

"""How commands show things."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


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


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as a table on standard output; the columns are the keys of the first row."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shown = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    for number, column in enumerate(rows[0] if rows else []):
        numeric = number > 0 and all(_is_number(row.get(column)) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(row.get(column)) for column in rows[0]))
    if not console.is_terminal:  # a pipe has no width: leave long lines whole
        console = Console(width=240)
    elif console.measure(shown, options=console.options.update(max_width=10_000)).maximum > (
        console.width
    ):
        _blocks(console, rows, title)
        return
    console.print(shown, highlight=False, markup=False)


def _blocks(console: Console, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """One paragraph per row, for tables that are wider than the terminal."""
    from rich.padding import Padding
    from rich.text import Text

    if title:
        console.print(title, highlight=False, markup=False)
    for row in rows:
        first, *others = rows[0]
        console.print(_cell(row.get(first)), style="bold", highlight=False, markup=False)
        for column in others:
            line = Text(f"{column}: {_cell(row.get(column))}")
            console.print(Padding(line, (0, 0, 0, 2)), highlight=False)


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

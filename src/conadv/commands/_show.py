"""How commands show things."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; a dash where it was not measured."""
    return "-" if fraction is None else f"{fraction:.2%}"


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
    console.print(shown, highlight=False, markup=False)


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

"""What the tables of results have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def spread(values: dict[str, float]) -> str:
    """Median and the range from the 10th to the 90th percentile."""
    return f"{values['median']:.2f} ({values['p10']:.2f}-{values['p90']:.2f})"


def machine(environment: dict[str, Any]) -> str:
    """Where it was measured."""
    return (
        f"{environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"Python {environment['python']}"
    )


def remade(environment: dict[str, Any]) -> str:
    """The line below a table."""
    return f"\nMeasured on {machine(environment)}; `{environment['command']}` remakes it.\n"

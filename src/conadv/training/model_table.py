"""The rows of `conadv models check` as a table for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> str:
    """How many work, in one line."""
    works = sum(row["works"] for row in rows)
    share = works / len(rows) if rows else 0.0
    return f"{works} of {len(rows)} networks work ({share:.1%})"


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table of all rows, those of one library together, by name."""
    lines = [
        "| network | normalisation | layers split | pixels | options | result |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        split = f"{row['split_layers']} {row['split']}".strip() if row["split_layers"] else "none"
        cells = (
            row["name"],
            row["normalisation"] or "none",
            split,
            str(row["image_size"]),
            options,
            "works" if row["works"] else row["reason"],
        )
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""What the pictures of the documentation have in common: where they lie, light and dark colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table_parts import ROOT

if TYPE_CHECKING:
    from conadv.lab.report.charts.palette import Colour

FOLDER = ROOT / "docs" / "pictures"
THEMES = {"light": ("#1c2430", "#59636e", "#dfe3e8"), "dark": ("#e6e9ee", "#a3adb9", "#39424e")}
"""Ink, soft ink and lines; the background is the page's."""
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif"


def style(theme: str) -> str:
    """What a report's page says of its drawings, for one that is a file of its own."""
    ink, soft, line = THEMES[theme]
    return (
        f"text{{fill:{ink};font-size:12px;font-family:{FONT}}}.axis{{fill:{soft}}}"
        f".title{{font-size:14px;font-weight:600}}.grid{{stroke:{line}}}.zero{{stroke:{soft}}}"
        f".target{{stroke:{soft};stroke-dasharray:2 3}}.others{{stroke:{soft};stroke-width:1}}"
        ".own{stroke:var(--c);stroke-width:2.2}.dot{stroke-dasharray:2.5 2.5}"
        ".whisker{stroke:var(--c);stroke-width:1.8}g>path{fill:var(--c)}"
        ".leader{fill:none;stroke:var(--c);stroke-width:.8;opacity:.6}"
    )


def shade(colour: Colour, theme: str) -> str:
    """A method's colour."""
    return colour.light if theme == "light" else colour.dark

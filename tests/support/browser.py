"""A page in a real headless browser, and what a reader would stumble over on it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in"),
]
AUDIT = Path(__file__).with_name("page_audit.js")


@dataclass(frozen=True)
class Seen:
    """A page as the browser laid it out.

    Attributes:
        width: Of all of it, in pixels.
        height: Likewise.
        drawings: How many drawings are visible.
        text: The visible text.
        found: What is hard to read, one line each.
    """

    width: int
    height: int
    drawings: int
    text: str
    found: list[str]


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=150,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def look(
    page: Path,
    folder: Path,
    *,
    width: int = 1280,
    dark: bool = False,
    printed: bool = False,
    unfolded: bool = False,
) -> Seen:
    """Lay a page out in a frame of some width, since a window cannot be as narrow as a phone.

    Args:
        page: The HTML file.
        folder: For the copy that is measured.
        width: Of the frame, in pixels.
        dark: Whether the reader prefers dark pages.
        printed: Lay it out as print does.
        unfolded: Open everything first.
    """
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    if printed:
        text = text.replace("@media print", "@media all").replace("@media screen", "@media print")
    opened = "document.querySelectorAll('details').forEach((one) => { one.open = true; });"
    script = (opened if unfolded else "") + AUDIT.read_text(encoding="utf-8")
    inner, outer = folder / "inner.html", folder / "outer.html"
    inner.write_text(f"{text}<script>onload = () => {{{script}}}</script>", encoding="utf-8")
    outer.write_text(
        "<meta charset=utf-8><body><script>addEventListener('message', (e) => { const pre = "
        "document.createElement('pre'); pre.textContent = 'SEEN' + JSON.stringify(e.data) + 'END'; "
        "document.body.append(pre); })</script>"
        f'<iframe src="{inner.name}" width="{width}" height="4000" style="border:0"></iframe>',
        encoding="utf-8",
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom, console = browse(outer, folder, f"--window-size={max(width, 800)},4000", *scheme)
    told = re.search(r"SEEN(\{.*\})END</pre>", dom, re.DOTALL)
    assert told, f"the page inside the frame did not answer: {console}"
    assert not console
    return Seen(**json.loads(html.unescape(told[1])))

"""The page in a real browser: it draws, complains about nothing, and fits a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conadv.report import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in"),
]
PHONE = 380


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
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
            f"--user-data-dir={profile}",
            *flags,
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=150,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_it_draws_in_the_dark_and_the_console_is_silent(
    four_runs: list[Path], tmp_path: Path
) -> None:
    page = write_report(four_runs, tmp_path / "page.html")
    dom, console = browse(page, tmp_path / "profile", "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert "Batch 1,000 lost 6.0 points against batch 100" in dom
    assert dom.count('class="chart js-plotly-plot"') == 4
    drawn = dom.partition('id="chart-val-accuracy"')[2].partition("</figure>")[0]
    assert drawn.count('class="trace scatter') == 4
    assert "passes over the training images" in drawn and "accuracy (%)" in drawn
    # The dark colour of recycled, which the page has to choose by itself.
    assert "rgb(90, 176, 247)" in drawn


def test_it_fits_a_phone(four_runs: list[Path], tmp_path: Path) -> None:
    """In a frame, because a browser's window has a least width above that of a phone."""
    page = write_report(four_runs, tmp_path / "page.html")
    measure = (
        "<script>addEventListener('load', () => setTimeout(() => parent.postMessage("
        "[document.documentElement.scrollWidth, document.querySelectorAll('.main-svg').length],"
        "'*'), 500))</script></body>"
    )
    inner = tmp_path / "inner.html"
    inner.write_text(page.read_text(encoding="utf-8").replace("</body>", measure), encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<body><script>addEventListener('message', (e) => document.body.append("
        "'SIZE ' + e.data.join(' ') + ' END'))</script>"
        f'<iframe src="{html.escape(inner.name)}" width="{PHONE}" height="4000"></iframe></body>'
    )
    dom, _ = browse(outer, tmp_path / "profile")
    found = re.search(r"SIZE (\d+) (\d+) END", dom)
    assert found, "the page inside the frame did not answer"
    assert int(found[1]) <= PHONE
    assert int(found[2]) > 0

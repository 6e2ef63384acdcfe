"""The page in a real browser: it draws, complains about nothing, and fits a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conadv.lab.report import write_report
from lab.report.conftest import MakeStudy

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
    assert "One seed each, no verdict: ordinary training 82.0" in dom
    assert dom.count('class="chart js-plotly-plot"') == 4
    drawn = dom.partition('id="chart-val-accuracy"')[2].partition("</figure>")[0]
    assert drawn.count('class="trace scatter') == 4
    assert "passes over the training images" in drawn and "accuracy (%)" in drawn
    # The dark colour of recycled, which the page has to choose by itself.
    assert "rgb(90, 176, 247)" in drawn


def test_a_study_draws_and_the_console_is_silent(make_study: MakeStudy, tmp_path: Path) -> None:
    page = write_report([make_study(failed=("sam-b1000/seed-0",))], tmp_path / "page.html")
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    assert dom.count('class="chart js-plotly-plot"') == 4 + 7
    chart = dom.partition('id="chart-batch"')[2].partition("</figure>")[0]
    # Ordinary training, recycled, sequential and SAM; longer training is not at equal epochs.
    assert chart.count('class="trace scatter') == 4
    assert chart.count('class="errorbars"') == 4
    assert "4,000" in chart and "test accuracy (%)" in chart
    curves = dom.partition('id="curves"')[2]
    assert curves.count('data-run="') == 13
    # Of three batches the ends are drawn, and the one in between waits.
    assert curves.count('aria-pressed="false"') == 6 + 2
    loss = dom.partition('id="chart-train-loss"')[2].partition("</figure>")[0]
    assert loss.count('class="trace scatter') == 7


def test_a_study_prints_and_its_legend_switches(make_study: MakeStudy, tmp_path: Path) -> None:
    page = write_report([make_study()], tmp_path / "page.html")
    click = "<script>document.querySelector('[data-method=\"3\"]').click()</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    chart = dom.partition('id="chart-batch"')[2].partition("</figure>")[0]
    assert chart.count('class="trace scatter') == 3
    pdf = tmp_path / "page.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 50_000


@pytest.mark.parametrize("study", [False, True])
def test_it_fits_a_phone(
    study: bool, four_runs: list[Path], make_study: MakeStudy, tmp_path: Path
) -> None:
    """In a frame, because a browser's window has a least width above that of a phone."""
    page = write_report([make_study()] if study else four_runs, tmp_path / "page.html")
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

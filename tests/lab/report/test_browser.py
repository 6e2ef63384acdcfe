"""The page in a real browser: legible in every light and width, without a script, and printed."""

from pathlib import Path

import pytest

from conadv.lab.report import write_report
from lab.report.conftest import METHODS, MakeStudy, write_pictures
from lab.report.study.test_large_batch import write_analysis
from support.browser import browse, look, needs_browser

pytestmark = needs_browser
TALLEST = 6000
"""Pixels of a page on a desktop before anything is unfolded."""
PUBLISHED = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the largest committed study: ten methods at four batches."""
    return write_report([PUBLISHED / "fashion-cpu"], tmp_path_factory.mktemp("page") / "a.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)])
def test_a_large_study_is_legible(largest: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = look(largest, tmp_path, width=width, dark=dark)
    assert seen.found == []
    assert seen.width <= width
    assert seen.drawings >= 3
    assert seen.height <= TALLEST or width < 1280
    assert largest.stat().st_size < 2_000_000


@pytest.mark.parametrize("width", [1280, 400])
def test_what_is_folded_is_legible_too(make_study: MakeStudy, tmp_path: Path, width: int) -> None:
    names = [f"a method with a long name, number {n}" for n in range(10)]
    methods = METHODS | {name: ("recycled", {}, (0.01, 0.02), 2.0) for name in names}
    folder = make_study(methods=methods, failed=("sam-b1000/seed-0",))
    for cell, sharpness in (("vanilla-b4000", 30.0), ("recycled-b4000", 10.0)):
        write_pictures(folder / f"runs/{cell}/seed-0/pictures.npz")
        write_analysis(folder / f"runs/{cell}/seed-0/analysis.json", sharpness)
    page = write_report([folder], tmp_path / "page.html")
    seen = look(page, tmp_path, width=width, unfolded=True)
    assert seen.found == []
    assert seen.width <= width
    # Curves of one axis at a time: four of sixteen methods each.
    assert "conadv train recycled-b4000" in seen.text and seen.drawings >= 4 * len(methods)


def test_print_opens_what_is_folded(largest: Path, four_runs: list[Path], tmp_path: Path) -> None:
    folded = look(largest, tmp_path, width=700)
    printed = look(largest, tmp_path, width=700, printed=True)
    assert printed.found == []
    assert "Compute as a multiple of ordinary training." in printed.text
    assert "Compute as a multiple of ordinary training." not in folded.text
    assert "Settings in which the runs differ" not in printed.text, "thousands of lines"
    page = write_report(four_runs, tmp_path / "page.html")
    pdf = tmp_path / "page.pdf"
    browse(page, tmp_path, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 20_000


def test_four_runs_are_legible_and_the_console_is_silent(
    four_runs: list[Path], tmp_path: Path
) -> None:
    page = write_report(four_runs, tmp_path / "page.html")
    dom, console = browse(page, tmp_path)
    assert console == [] and "<script" not in dom
    for width in (1280, 400):
        seen = look(page, tmp_path, width=width, unfolded=True)
        assert seen.found == [] and seen.width <= width
        # Two charts of differences, two of training accuracy, four methods in four curves.
        assert seen.drawings >= 4 + 16

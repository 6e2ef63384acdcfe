"""The page: whole, alone, small, and safe whatever the runs are called."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conadv.errors import RunFolderError
from conadv.lab.report import find_runs, render_report, write_report
from lab.report.conftest import MakeRun

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}</script>"


class Outline(HTMLParser):
    """Tags, ids and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.addresses += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "img":
            self.alternatives.append(str(given.get("alt", "")))


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    return parsed


def test_everything_is_on_it_and_nothing_is_loaded(four_runs: list[Path]) -> None:
    page = render_report(find_runs(four_runs))
    parsed = outline(page)
    assert {"results", "curves", "cost", "pictures", "runs"} <= set(parsed.ids)
    assert "<h1>One seed each, no verdict: ordinary training 82.0" in page
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    inside = {address[1:] for address in parsed.addresses if address.startswith("#")}
    assert {"results", "runs"} <= inside <= set(parsed.ids)
    assert "@import" not in page and "script" not in parsed.tags
    assert "default-src 'none'" in page
    assert len(parsed.alternatives) == 2 * 3 * 3 and all(parsed.alternatives)
    assert "Abacus 9000" in page and "8.0 GiB" in page
    assert len(page.encode()) < 200_000


def test_the_command_remakes_the_run_from_its_own_recipe(make_run: MakeRun) -> None:
    folder = make_run("two words")
    page = html.unescape(render_report(find_runs([folder])))
    assert f"conadv train '{folder}/recipe.yaml' --out '{folder}-again'" in page


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    folder = make_run("a", method=HOSTILE, dataset=HOSTILE, model=HOSTILE, pictures=True)
    (folder / "environment.json").write_text(json.dumps({HOSTILE: {HOSTILE: HOSTILE}}))
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(f"{recipe}\n# {HOSTILE}\nextra: '{HOSTILE[:20]}'\n")
    page = render_report(find_runs([folder]), title=HOSTILE, lead=HOSTILE)
    assert "alert(1)" in page and "<script>alert" not in page
    assert "7*7" in page
    plain = outline(render_report(find_runs([make_run("b", pictures=True)])))
    assert outline(page).tags.count("script") == plain.tags.count("script")


def test_a_bare_result_makes_a_page_without_empty_panels(make_run: MakeRun) -> None:
    folder = make_run("a")
    for path in folder.iterdir():
        if path.name != "result.json":
            path.unlink()
    page = render_report(find_runs([folder]))
    assert {"found", "results", "runs"} <= set(outline(page).ids)
    assert "<script" not in page and len(page) < 50_000
    assert "metrics.jsonl is missing." in page


def test_an_unfinished_run_is_marked(make_run: MakeRun) -> None:
    page = render_report(
        find_runs([make_run("v"), make_run("r", schedule="recycled", status="interrupted")])
    )
    assert re.search(r'class="flag">interrupted', page)
    assert "r is interrupted and left out of every comparison." in page


def test_write_report_makes_its_folder(four_runs: list[Path], tmp_path: Path) -> None:
    out = write_report(four_runs, tmp_path / "new" / "page.html", lead="A lead.")
    assert "A lead." in out.read_text(encoding="utf-8")


def test_what_cannot_be_written_or_read_is_said(four_runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot write the report"):
        write_report(four_runs, four_runs[0] / "recipe.yaml" / "page.html")
    with pytest.raises(RunFolderError, match="does not exist"):
        write_report([tmp_path / "none"], tmp_path / "page.html")
    with pytest.raises(ValueError, match="no runs"):
        render_report([])


def test_many_runs_stay_one_small_page(make_run: MakeRun) -> None:
    folders = [
        make_run(f"r{i}", schedule=schedule, batch=100 * (1 + i % 5), seed=i, steps=300)
        for i, schedule in enumerate(["vanilla", "recycled", "sequential", "own"] * 15)
    ]
    assert len(render_report(find_runs(folders)).encode()) < 2_000_000

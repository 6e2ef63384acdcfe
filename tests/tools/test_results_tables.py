"""The tables in the documentation are what the committed result files say."""

import re

from support.tools import load_tool

results_tables = load_tool("results_tables")
ROOT = results_tables.ROOT


def test_documented_tables_are_up_to_date() -> None:
    for page in results_tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert results_tables.render(page, text) == text, "run python tools/results_tables.py"


def test_every_table_is_shown_somewhere() -> None:
    shown = {
        m[2]
        for page in results_tables.PAGES
        for m in results_tables.BLOCK.finditer(page.read_text())
    }
    assert shown == set(results_tables.TABLES)


def test_an_edited_figure_is_put_right() -> None:
    text = "a\n<!-- results: quickstart -->\n| made | up |\n<!-- end of results -->\nb\n"
    new = results_tables.render(results_tables.ROOT / "README.md", text)
    assert "made" not in new
    assert new.startswith("a\n<!-- results: quickstart -->\n| method |")
    assert new.endswith("<!-- end of results -->\nb\n")


def test_the_readme_is_read_in_minutes() -> None:
    shown = re.sub(
        r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(shown.split()) < 900

"""The tables in the documentation are what the committed result files say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools/results_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documented_tables_are_up_to_date(tables: ModuleType) -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.render(text) == text, "run python tools/results_tables.py"


def test_every_table_is_shown_somewhere(tables: ModuleType) -> None:
    shown = {m[2] for page in tables.PAGES for m in tables.BLOCK.finditer(page.read_text())}
    assert shown == set(tables.TABLES)


def test_an_edited_figure_is_put_right(tables: ModuleType) -> None:
    text = "a\n<!-- results: quickstart -->\n| made | up |\n<!-- end of results -->\nb\n"
    new = tables.render(text)
    assert "made" not in new
    assert new.startswith("a\n<!-- results: quickstart -->\n| method |")
    assert new.endswith("<!-- end of results -->\nb\n")

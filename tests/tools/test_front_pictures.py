"""The chart of the front page is drawn from the committed results, and the README shows it."""

import re
from xml.etree import ElementTree

import pytest

from support.tools import ROOT, load_tool

front_pictures = load_tool("front_pictures")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_chart_is_up_to_date(theme: str) -> None:
    kept = (front_pictures.FOLDER / f"headline-{theme}.svg").read_text(encoding="utf-8")
    drawn = front_pictures.headline(theme)
    assert drawn == kept, "run python tools/front_pictures.py"


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md"])
def test_pictures_of_a_page_exist_and_are_well_formed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(shown) >= 4
    for name in shown:
        path = (ROOT / page).parent / name
        assert path.stat().st_size < 100_000
        assert ElementTree.parse(path).getroot().tag.endswith("svg")

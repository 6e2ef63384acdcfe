"""The pictures are drawn from the committed results, and README and gallery show them."""

import re
from xml.etree import ElementTree

import pytest

from support.tools import ROOT, load_tool

front_pictures = load_tool("front_pictures")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["headline", "copies", "landscape", "staleness"])
def test_the_pictures_are_up_to_date(name: str, theme: str) -> None:
    kept = (front_pictures.FOLDER / f"{name}-{theme}.svg").read_text(encoding="utf-8")
    drawn = getattr(front_pictures, name)(theme)
    assert drawn == kept, "run make pictures"
    assert name in (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md"])
def test_pictures_of_a_page_exist_and_are_well_formed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(shown) >= 4
    for name in shown:
        path = (ROOT / page).parent / name
        assert path.stat().st_size < 100_000
        assert ElementTree.parse(path).getroot().tag.endswith("svg")

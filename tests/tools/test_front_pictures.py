"""The pictures are drawn from the committed results, and the documentation shows all of them."""

import re
from xml.etree import ElementTree

import pytest

from support.tools import ROOT, load_tool

front_pictures = load_tool("front_pictures")
PAGES = ("README.md", "docs/gallery.md", "docs/results.md")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pictures_are_up_to_date(theme: str) -> None:
    end = f"-{theme}.svg"
    kept = {
        path.name.removesuffix(end): path.read_text(encoding="utf-8")
        for path in front_pictures.FOLDER.glob(f"*{end}")
    }
    assert kept == front_pictures.pictures(theme), "run make pictures"


def shown(page: str) -> list[str]:
    return re.findall(r'(?:src|srcset)="([^"]+)"', (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_pictures_of_a_page_exist_and_are_well_formed(page: str) -> None:
    assert len(shown(page)) >= 4
    for name in shown(page):
        path = (ROOT / page).parent / name
        assert path.stat().st_size < 100_000
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_every_picture_is_shown_somewhere_in_light_and_in_dark() -> None:
    files = {path.name for path in front_pictures.FOLDER.glob("*.svg")}
    assert files == {name.rpartition("/")[2] for page in PAGES for name in shown(page)}

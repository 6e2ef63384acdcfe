"""Tables of ImageNet scores: numbers as a person reads them, from files alone."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conadv.errors import RunFolderError
from conadv.lab.report.imagenet import imagenet_html, imagenet_markdown, read_imagenet

HOSTILE = "<script>alert(1)</script>|`*\"'"


def figures(top1: float, images: int, published: int) -> dict[str, Any]:
    return {
        "images": images,
        "published_images": published,
        "top1": top1,
        "top1_standard_error": 0.00191,
        "top5": 0.93,
        "top5_standard_error": 0.0011,
    }


def result(**more: Any) -> dict[str, Any]:
    val = {"set": "val", "part": "", "title": "ImageNet validation", "classes": 1000}
    a = {"set": "a", "part": "", "title": "ImageNet-A", "classes": 200, "real": None}
    return {
        "kind": "imagenet",
        "model": "resnet50",
        "sets": [
            val | figures(0.7613, 50_000, 50_000) | {"real": figures(0.829, 46_837, 46_837)},
            a | figures(0.024, 7_000, 7_500),
        ],
        "corruption": None,
    } | more


def corruption(**more: Any) -> dict[str, Any]:
    return {
        "errors": {
            "gaussian_noise": {"1": 0.4, "2": 0.5, "3": 0.6, "4": 0.7, "5": 0.8},
            "fog": {"3": 0.5},
        },
        "mean_errors": {"gaussian_noise": 0.6},
        "normalised": {"gaussian_noise": 67.6874},
        "mean_error": None,
        "mce": None,
        "missing": ["fog/1"],
        "withheld": "Mean error and mCE need all 15 corruptions.",
    } | more


def plain(text: str) -> list[str]:
    return text.replace("\N{NARROW NO-BREAK SPACE}", " ").splitlines()


class Cells(HTMLParser):
    """Rows of all tables, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and self.tags[-1] in ("td", "th", "span"):
            self.rows[-1][-1] += data.strip()


def test_markdown_of_one_network() -> None:
    assert plain(imagenet_markdown([result()])) == [
        "### ImageNet test sets",
        "",
        "| Test set | Images | Top-1 | Top-5 |",
        "| --- | ---: | ---: | ---: |",
        "| ImageNet validation | 50,000 | 76.13 % ± 0.19 | 93.00 % ± 0.11 |",
        "| ImageNet validation, ReaL labels | 46,837 | 82.90 % ± 0.19 | 93.00 % ± 0.11 |",
        "| ImageNet-A | 7,000 | 2.40 % ± 0.19 | 93.00 % ± 0.11 |",
        "",
        "- ± is one standard error over the images of the set.",
        "- On ImageNet-A a prediction is one of the 200 classes of the set.",
        "- ImageNet-A: 7,000 of 7,500 published images.",
    ]


def test_corruptions_that_are_incomplete() -> None:
    lines = plain(imagenet_markdown([result(sets=[], corruption=corruption())]))
    assert "| ImageNet-C | – | – | – |" in lines
    start = lines.index("### ImageNet-C, resnet50")
    assert lines[start + 2 :] == [
        "| Corruption | 1 | 2 | 3 | 4 | 5 | Mean error | CE |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| gaussian noise | 40.0 % | 50.0 % | 60.0 % | 70.0 % | 80.0 % | 60.0 % | 67.7 % |",
        "| fog | – | – | 50.0 % | – | – | – | – |",
        "| All |  |  |  |  |  | – | – |",
        "",
        "- Top-1 error by severity. CE: mean error in per cent of AlexNet's; mCE: their mean.",
        "- Mean error and mCE need all 15 corruptions.",
    ]


def test_corruptions_that_are_complete() -> None:
    cells = [{"set": "c", "images": 50_000, "published_images": 50_000}] * 75
    done = corruption(mean_error=0.608, mce=76.7, missing=[], withheld=None)
    lines = plain(imagenet_markdown([result(sets=cells, corruption=done)]))
    assert "| ImageNet-C | 3,750,000 | 39.20 % | – |" in lines
    assert "| All |  |  |  |  |  | 60.8 % | 76.7 % |" in lines
    assert not [line for line in lines if "published images" in line or "need all" in line]


def test_html_shows_the_same_cells() -> None:
    results = [result(corruption=corruption()), result(model="vit")]
    parsed = Cells()
    # Markdown has plain spaces: it is read as a file too.
    parsed.feed("\n".join(plain(imagenet_html(results))))
    markdown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in imagenet_markdown(results).splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    assert parsed.rows == markdown
    assert parsed.rows[0] == ["Network", "Test set", "Images", "Top-1", "Top-5"]
    assert [row[0] for row in parsed.rows].count("vit") == 3
    assert parsed.tags.count("table") == 2


def test_hostile_names_stay_text() -> None:
    content = result(model=HOSTILE, corruption=corruption(errors={HOSTILE: {"1": 0.1}}))
    content["sets"][0]["title"] = HOSTILE
    parsed = Cells()
    parsed.feed(imagenet_html([content, content]))
    assert "script" not in parsed.tags
    assert "<script" not in imagenet_markdown([content]).replace("\\<", "")


def test_what_is_missing_or_odd_becomes_a_dash() -> None:
    odd = {"sets": [{"top1": "high", "images": True}, 7, {"set": "r", "top1": float("nan")}]}
    lines = plain(imagenet_markdown([odd]))
    assert lines[4:6] == ["| unknown set | – | – | – |", "| r | – | – | – |"]
    assert "<table" in imagenet_html([{"corruption": {"errors": {"fog": None}}}])


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "resnet.json"
    path.write_text(json.dumps(result(model="")))
    assert read_imagenet(path)["model"] == "resnet"
    for content, message in [("{", "is damaged"), ("[]", "kind"), ('{"kind": "x"}', "kind")]:
        path.write_text(content)
        with pytest.raises(RunFolderError, match=message):
            read_imagenet(path)
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_imagenet(tmp_path / "none.json")
    with pytest.raises(ValueError, match="at least one"):
        imagenet_markdown([])

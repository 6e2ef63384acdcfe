"""Folders, classes, images and shards whose names are not UTF-8, through a run and its report."""

import io
import json
import sys
from pathlib import Path

import pytest

from conadv.cli import main
from conadv.errors import DataError
from conadv.trainer.data.sources import open_source, write_shards
from support.images import encoded
from support.runs import quietly, tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

ODD = "h\udcfcnd"  # the byte 252, as Latin-1 has it
FILES = (
    "data.dataset=files",
    "data.crop_padding=0",
    "data.files.size=8",
    "data.files.eval_size=8",
    "data.files.eval_resize=9",
    "data.files.workers=0",
    "data.files.max_corrupt=0.5",
    "train.steps=2",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("val", 3)):
        for number in range(2 * count):
            place = tmp_path / "images" / split / (ODD if number % 2 else "katze")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"bild\udce9 {number}.png").write_bytes(encoded(number))
    (tmp_path / "images/train" / ODD / "kaputt\udce9.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path / "images"


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_and_its_report(
    sharded: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # pytest could not decode what is printed
    where = [f"data.root={folder}"]
    if sharded:
        for split in ("train", "val"):
            write_shards(open_source(str(folder), split), tmp_path / split, images_per_shard=8)
        where = [f"data.root={tmp_path / 'train'}", f"data.files.test_root={tmp_path / 'val'}"]
    run = tmp_path / "l\udce4uf"
    quietly(tiny(*FILES, *where, "logging.loggers=[]"), run)
    kept = tmp_path / "e\udce4.json"
    assert main(["evaluate", str(run), "--steps", "0", "--classes", "--json", str(kept)]) == 0
    assert set(json.loads(kept.read_text())["class_accuracy"]) == {ODD, "katze"}
    page, table = tmp_path / "b\udce4.html", tmp_path / "b\udce4.csv"
    assert main(["report", str(run), "--out", str(page), "--csv", str(table)]) == 0
    assert "h\\udcfcnd" in page.read_text(encoding="utf-8")
    assert table.read_text(encoding="utf-8").count("\n") >= 2


def test_what_is_damaged_is_named(folder: Path) -> None:
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"h\\udcfcnd|h\udcfcnd|katze"):
        quietly(tiny(*FILES, f"data.root={folder}"), folder / "run")

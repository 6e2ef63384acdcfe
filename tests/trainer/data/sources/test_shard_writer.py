"""Sources as shards: the same bytes, mixed, resumed."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from conadv.errors import DataError
from conadv.trainer.data import sampler
from conadv.trainer.data.sources import (
    FolderSource,
    Manifest,
    ShardSource,
    open_source,
    read_manifest,
    write_shards,
)
from conadv.trainer.data.sources.manifest import MANIFEST
from support.images import encoded, image_folder


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    return FolderSource(image_folder(tmp_path / "pets", {"cat": 6, "owl": 5}))


def content(source) -> Counter:
    """(class, bytes) of every image."""
    return Counter(
        (source.classes[label], source.read(i)) for i, label in enumerate(source.labels.tolist())
    )


def shards_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_nothing_is_lost_or_changed(source: FolderSource, tmp_path: Path, said) -> None:
    seen: list[tuple[int, int]] = []
    made = write_shards(
        source, tmp_path / "out", images_per_shard=4, progress=lambda *at: seen.append(at)
    )
    assert seen == [(i, 11) for i in range(1, 12)]
    back = open_source(tmp_path / "out", "train", said.append)
    assert content(back) == content(source)
    assert back.classes == ("cat", "owl")
    assert list(shards_in(tmp_path / "out")) == [f"shard-{i:06d}.tar" for i in range(3)]
    assert made == read_manifest(tmp_path / "out")
    assert made == Manifest(
        source="pets",
        fingerprint=source.fingerprint,
        images=11,
        images_per_shard=4,
        seed=0,
        classes=("cat", "owl"),
        class_counts=(6, 5),
        complete=True,
    )


def test_many_images_need_no_table_of_their_order(
    source: FolderSource, tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "WHOLE", 10)
    monkeypatch.delattr(sampler, "permutation")
    write_shards(source, tmp_path / "out", images_per_shard=4)
    assert content(open_source(tmp_path / "out", "train", said.append)) == content(source)


def test_keys_lead_back_to_the_source(source: FolderSource, tmp_path: Path, said) -> None:
    write_shards(source, tmp_path / "out")
    back = open_source(tmp_path / "out", "train", said.append)
    for i in range(len(back)):
        key = int(Path(back.where(i).partition("::")[2]).stem)
        assert back.read(i) == source.read(key) and back.labels[i] == source.labels[key]


def test_classes_are_mixed_by_the_seed(source: FolderSource, tmp_path: Path, said) -> None:
    write_shards(source, tmp_path / "a", images_per_shard=6)
    write_shards(source, tmp_path / "b", images_per_shard=6)
    write_shards(source, tmp_path / "c", images_per_shard=6, seed=1)
    assert shards_in(tmp_path / "a") == shards_in(tmp_path / "b") != shards_in(tmp_path / "c")
    first = ShardSource([tmp_path / "a" / "shard-000000.tar"], say=said.append)
    assert len(first.classes) == 2 and len(torch.unique(first.labels)) == 2


class Stops:
    """A source that is interrupted after some images."""

    def __init__(self, source: FolderSource, after: int, error: BaseException) -> None:
        self.source, self.left, self.error = source, after, error

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.source.read(index)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("cat/1.jpg could not be read")])
def test_an_interrupted_conversion_goes_on(source, tmp_path: Path, said, error) -> None:
    out = tmp_path / "out"
    with pytest.raises(type(error)):
        write_shards(Stops(source, 6, error), out, images_per_shard=4)
    assert list(shards_in(out)) == ["shard-000000.tar"]
    assert {path.name for path in out.iterdir()} == {
        "shard-000000.tar", ".conadv.lock", MANIFEST,
    }  # fmt: skip
    with pytest.raises(DataError, match="a conversion that is not finished: give"):
        open_source(out, "train", said.append)

    before = (out / "shard-000000.tar").stat().st_mtime_ns
    again = Stops(source, 7, RuntimeError("read more than was missing"))
    seen: list[tuple[int, int]] = []
    write_shards(again, out, images_per_shard=4, progress=lambda *at: seen.append(at))
    assert seen[0] == (4, 11) and seen[-1] == (11, 11)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before
    write_shards(source, tmp_path / "at once", images_per_shard=4)
    assert shards_in(out) == shards_in(tmp_path / "at once")


def test_what_a_killed_conversion_left_is_removed(source: FolderSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(source, out, images_per_shard=4)
    left = (out / "shard-000002.tar").rename(out / ".shard-000002.tar.host-1-1.partial")
    write_shards(source, out, images_per_shard=4)
    assert not left.exists() and len(shards_in(out)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "shards of 'pets' with seed 0, not 1: name another folder"),
        ({"images_per_shard": 5}, "with images_per_shard 4, not 5"),
    ],
)
def test_other_settings_are_refused(source, tmp_path: Path, options, message: str) -> None:
    write_shards(source, tmp_path / "out", images_per_shard=4)
    with pytest.raises(DataError, match=message):
        write_shards(source, tmp_path / "out", **{"images_per_shard": 4, **options})


def test_a_folder_of_something_else_is_refused(source: FolderSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(source, out)
    other = FolderSource(image_folder(tmp_path / "more", {"cat": 6, "owl": 6}))
    with pytest.raises(DataError, match="shards of 'pets' with other images"):
        write_shards(other, out)
    (out / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"holds shard-000000\.tar of something else"):
        write_shards(source, out)
    (out / "shard-000000.tar").unlink()
    (out / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"holds manifest\.json of something else"):
        write_shards(source, out)
    with pytest.raises(ValueError, match="at least one image, given: 0"):
        write_shards(source, out, images_per_shard=0)


def test_a_manifest_that_does_not_fit_its_shards(source, tmp_path: Path, said) -> None:
    out = tmp_path / "out"
    write_shards(source, out, images_per_shard=4)
    (out / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing"):
        open_source(out, "train", said.append)
    part = open_source(f"{out}/shard-00000[02].tar", "train", said.append)  # asked for by name
    assert len(part) == 7 and part.classes == ("cat", "owl")
    (out / "shard-000001.tar").write_bytes((out / "shard-000002.tar").read_bytes())
    with pytest.raises(DataError, match="promises 11 images in these shards, there are 10"):
        open_source(out, "train", said.append)
    values = json.loads((out / MANIFEST).read_text())
    for damage in ("{", json.dumps({**values, "classes": 3}), json.dumps({**values, "new": 3})):
        (out / MANIFEST).write_text(damage)
        with pytest.raises(DataError, match=r"manifest\.json is"):
            open_source(out, "train", said.append)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_extension_is_what_the_bytes_are(tmp_path: Path, said, kind: str) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.jpg").write_bytes(encoded(1, kind))
    write_shards(FolderSource(tmp_path / "in"), tmp_path / "out")
    back = open_source(tmp_path / "out", "train", said.append)
    extension = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    assert back.where(0).endswith(f"::00000000.{extension}")
    assert back.read(0) == encoded(1, kind)


def test_bytes_that_nobody_knows_keep_their_name_but_none_are_an_error(tmp_path, said) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    file = tmp_path / "in" / "cat" / "1.PPM"
    file.write_bytes(b"P6 1 1 255 abc")
    write_shards(FolderSource(tmp_path / "in"), tmp_path / "out")
    assert open_source(tmp_path / "out", "train", said.append).where(0).endswith(".ppm")
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/1\.PPM is no image .*, of 0 bytes"):
        write_shards(FolderSource(tmp_path / "in"), tmp_path / "out2")


# -- the command -----------------------------------------------------------------------------------


def test_the_command(source: FolderSource, tmp_path: Path, capsys, monkeypatch, said) -> None:
    pytest.importorskip("typer")
    from conadv.cli import main

    asked = ["data", "shard", str(tmp_path / "pets"), str(tmp_path / "out")]
    assert main([*asked, "--images-per-shard", "4", "--seed", "3"]) == 0
    shown = capsys.readouterr()
    assert "11 images in 3 shards, 2 classes: " in shown.out
    assert content(open_source(tmp_path / "out", "val", said.append)) == content(source)
    assert main(asked) == 2
    assert "error: " in (shown := capsys.readouterr().err) and "images_per_shard 4" in shown

    def interrupt(self, index: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderSource, "read", interrupt)
    assert main([*asked[:3], str(tmp_path / "other")]) == 130
    assert "finished shards are kept; the same command goes on" in capsys.readouterr().err

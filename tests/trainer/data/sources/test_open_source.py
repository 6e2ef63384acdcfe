"""What a source is, from what the user gives."""

from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import (
    FolderSource,
    ImageNetSource,
    ImageSource,
    ShardSource,
    open_source,
)
from support.images import devkit, encoded, image_folder, imagenet_train, imagenet_val, shard


def test_a_folder_of_classes_is_any_split(tmp_path: Path, said) -> None:
    root = image_folder(tmp_path / "pets", {"cat": 1, "owl": 1})
    for split in ("train", "val"):
        source: ImageSource = open_source(str(root), split, said.append)
        assert isinstance(source, FolderSource) and source.name == "pets"
    assert said == []


@pytest.mark.parametrize("called", ["val", "validation", "valid"])
def test_a_folder_per_split(tmp_path: Path, said, called: str) -> None:
    image_folder(tmp_path / "pets" / "train", {"cat": 2, "owl": 1})
    image_folder(tmp_path / "pets" / called, {"cat": 1, "owl": 1})
    train, val = (open_source(tmp_path / "pets", split, said.append) for split in ("train", "val"))
    assert (train.name, len(train), val.name, len(val)) == ("pets-train", 3, "pets-val", 2)
    with pytest.raises(DataError, match=r"train, val.*, and nothing for the split 'test': add"):
        open_source(tmp_path / "pets", "test", said.append)


def test_a_class_called_train(tmp_path: Path, said) -> None:
    root = image_folder(tmp_path, {"car": 1, "train": 1})
    assert open_source(root, "val", said.append).classes == ("car", "train")


def test_validation_images_without_class_folders(tmp_path: Path, said) -> None:
    image_folder(tmp_path / "train", {"cat": 1})
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.jpg").write_bytes(encoded(1))
    with pytest.raises(DataError, match="val holds images without class folders: move each"):
        open_source(tmp_path, "val", said.append)


def test_imagenets_archives(tmp_path: Path, said) -> None:
    train, val = imagenet_train(tmp_path), imagenet_val(tmp_path)
    for where in (tmp_path, train):
        source = open_source(where, "train", said.append)
        assert isinstance(source, ImageNetSource) and len(source) == 6
    with pytest.raises(DataError, match="devkit.*is missing"):
        open_source(val, "val", said.append)
    pytest.importorskip("scipy")
    devkit(tmp_path)
    assert len(open_source(tmp_path, "val", said.append)) == 4
    with pytest.raises(DataError, match="train and val only"):
        open_source(tmp_path, "test", said.append)


def test_shards(tmp_path: Path, said, monkeypatch) -> None:
    shard(tmp_path / "x-train-0.tar", [0, 1])
    shard(tmp_path / "x-train-1.tar", [1], first=2)
    shard(tmp_path / "x-val-0.tar", [0, 1, 1, 0])
    for where, split, count in (
        (tmp_path, "train", 3),
        (tmp_path, "val", 4),
        (f"{tmp_path}/x-train-{{0..1}}.tar", "train", 3),
        (f"{tmp_path}/x-*-0.tar", "train", 6),  # a pattern is taken at its word
        (tmp_path / "x-val-0.tar", "train", 4),
    ):
        source = open_source(where, split, said.append)
        assert isinstance(source, ShardSource) and len(source) == count
    monkeypatch.chdir(tmp_path)
    source = open_source("x-val-{0..0}.tar", "val", said.append)
    assert source.read(0) == encoded(0) and source.name == "x-val-{0..0}.tar"
    with pytest.raises(DataError, match="none of 'test'"):
        open_source(tmp_path, "test", said.append)
    with pytest.raises(DataError, match="1 of 2 shards are missing"):
        open_source(f"{tmp_path}/x-val-{{0..1}}.tar", "val", said.append)


def test_a_folder_of_shards_per_split(tmp_path: Path, said) -> None:
    shard(tmp_path / "train" / "shard-0.tar", [0, 1])
    shard(tmp_path / "val" / "shard-0.tar", [0])
    assert len(open_source(tmp_path, "train", said.append)) == 2
    val = open_source(tmp_path, "val", said.append)
    assert len(val) == 1 and val.name == f"{tmp_path.name}-val"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "nowhere is not there. Allowed are a folder of class folders"),
        ("nowhere.tar", "nowhere.tar is not there"),
        ("file.txt", "file.txt is nothing that holds images. Allowed are"),
        ("empty", "empty holds no images. Allowed are"),
        ("s3://bucket/x.tar", "has an unknown beginning. Allowed are"),
        ("x-{0..1}.zip", "is not there. Allowed are"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, said, monkeypatch, where: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_source(where, "train", said.append)


def test_a_split_that_is_none(tmp_path: Path, said) -> None:
    with pytest.raises(DataError, match="No split 'dev': there are train, val, test"):
        open_source(tmp_path, "dev", said.append)


def test_where_may_begin_with_the_home_folder(tmp_path: Path, said, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    image_folder(tmp_path / "pets", {"cat": 1})
    shard(tmp_path / "s" / "x-0.tar", [0])
    assert len(open_source("~/pets", "train", said.append)) == 1
    assert len(open_source("~/s/x-{0..0}.tar", "train", said.append)) == 1

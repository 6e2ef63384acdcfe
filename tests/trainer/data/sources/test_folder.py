"""Folders with one folder per class."""

import os
from pathlib import Path

import pytest
import torch

from conadv.errors import DataError
from conadv.trainer.data.sources import FolderSource
from support.images import encoded, image_folder


def test_classes_and_images_are_sorted(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"owl": 1, "cat": 2})
    source = FolderSource(root)
    assert (source.name, source.classes, len(source)) == ("pets", ("cat", "owl"), 3)
    assert source.labels.dtype == torch.int64 and source.labels.tolist() == [0, 0, 1]
    assert [source.where(i) for i in range(3)] == [
        str(root / name) for name in ("cat/000.jpg", "cat/001.jpg", "owl/000.jpg")
    ]
    assert source.read(2) == encoded(0) and source.read(1) == encoded(101)
    with pytest.raises(IndexError):
        source.read(3)


def test_files_that_are_no_images_are_left_alone(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"cat": 1})
    for name in ("notes.txt", "._000.jpg", ".jpg", "jpg", "cat/._001.jpg", "cat/Thumbs.db"):
        (root / name).write_bytes(b"x")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "more").mkdir()
    (root / "cat" / "more" / "1.PNG").write_bytes(encoded(1, "PNG"))
    source = FolderSource(root)
    assert [Path(source.where(i)).name for i in range(len(source))] == ["000.jpg", "1.PNG"]


def test_torchvision_gives_the_same_order(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    root = image_folder(tmp_path, {"b": 3, "a-b": 2, "a": 2})
    theirs = torchvision.datasets.ImageFolder(root)
    source = FolderSource(root)
    assert [(source.where(i), int(source.labels[i])) for i in range(7)] == theirs.samples


def test_the_fingerprint_follows_names_sizes_and_labels(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "a", {"cat": 2, "owl": 1})
    first = FolderSource(root).fingerprint
    assert len(first) == 64
    assert FolderSource(image_folder(tmp_path / "b", {"cat": 2, "owl": 1})).fingerprint == first
    (root / "cat" / "000.jpg").write_bytes(b"longer than it was" * 100)
    larger = FolderSource(root).fingerprint
    (root / "cat" / "001.jpg").rename(root / "owl" / "001.jpg")
    moved = FolderSource(root).fingerprint
    assert len({first, larger, moved}) == 3


def test_odd_names_survive(tmp_path: Path) -> None:
    image_folder(tmp_path, {"Übung 1": 1})
    try:
        odd = os.fsencode(tmp_path / "Übung 1") + b"/\xff.jpg"
        Path(os.fsdecode(odd)).write_bytes(encoded(7))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    source = FolderSource(tmp_path)
    assert encoded(7) in [source.read(i) for i in range(2)]
    assert len(source.fingerprint) == 64


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere could not be read \(No such file"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    with pytest.raises(DataError, match="has no class folders: give"):
        FolderSource(tmp_path)
    image_folder(tmp_path, {"cat": 1, "dog": 0, "owl": 0})
    with pytest.raises(DataError, match="no images in dog, owl: put"):
        FolderSource(tmp_path)
    for i in range(5):
        (tmp_path / f"z{i}").mkdir()
    with pytest.raises(DataError, match="in dog, owl, z0, z1, z2 and 2 more"):
        FolderSource(tmp_path)


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"cat": 2})
    source = FolderSource(root)
    (root / "cat" / "001.jpg").unlink()
    with pytest.raises(DataError, match=r"001\.jpg could not be read"):
        source.read(1)
    with pytest.raises(DataError, match=r"001\.jpg could not be read"):
        _ = source.fingerprint


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    source = FolderSource(image_folder(tmp_path, {"cat": 1}))

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"000\.jpg could not be read \(Permission denied\)"):
        source.read(0)


def test_a_class_folder_that_may_not_be_read_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch
) -> None:
    root = image_folder(tmp_path, {"cat": 1, "dog": 1})
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"dog could not be read \(Permission denied\)"):
        FolderSource(root)


def test_every_image_counts_and_the_rest_is_told(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"cat": 1, "dog": 1})
    for name in ("a.jfif", "b.AVIF", "c.jp2", "d"):
        (root / "cat" / name).write_bytes(encoded(1))
    for name in ("notes.txt", "more.txt", "noimage", ".hidden.jpg", "Thumbs.db"):
        (root / "cat" / name).write_bytes(b"text")
    said: list[str] = []
    source = FolderSource(root, say=said.append)
    assert len(source) == 6
    assert said == [
        f"{root}: 3 files left out (2 .txt; 1 no extension and not the beginning of an image)"
    ]


def test_each_real_folder_counts_once(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"cat": 3})
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    for place in (root / "cat" / "@eaDir", root / "@eaDir"):
        place.mkdir()
        (place / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encoded(1))
    source = FolderSource(root, say=lambda text: None)
    assert source.classes == ("cat",) and len(source) == 3


def test_a_nameless_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"cat": 1})
    (root / "cat" / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone could not be read \(No such file"):
        FolderSource(root)

"""Finding members in archives, and keeping what was found."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import tar as tar_cache
from conadv.trainer.data.sources.handles import stamp_of
from conadv.trainer.data.sources.tar import INDEX, index_tar, tar_indexes
from support.images import tar_bytes

LONG = "a/" + "x" * 150 + ".jpg"
MEMBERS = [("a.jpg", b"one"), (LONG, b"second"), ("b.cls", b"7\n"), ("empty", b"")]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "x.tar"
    path.parent.mkdir()
    path.write_bytes(tar_bytes(MEMBERS))
    return path


# -- one archive -----------------------------------------------------------------------------------


def test_every_member_lies_where_the_index_says(archive: Path) -> None:
    index = index_tar(archive)
    content = archive.read_bytes()
    found = [
        (name.decode(), content[offset : offset + size])
        for name, offset, size in zip(
            index.names.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True
        )
    ]
    assert found == MEMBERS
    assert index.texts.tolist() == [b"", b"", b"7\n", b""]
    assert index.stamp == stamp_of(archive)


def test_members_of_inner_archives_too(archive: Path) -> None:
    inner = tar_bytes([("1.jpg", b"11"), ("2.jpg", b"2222")])
    archive.write_bytes(tar_bytes([("n1.tar", inner), ("folder/n2.tar", inner), ("c.jpg", b"c")]))
    index = index_tar(archive)
    content = archive.read_bytes()
    assert index.names.tolist() == [
        b"n1/1.jpg", b"n1/2.jpg", b"folder/n2/1.jpg", b"folder/n2/2.jpg", b"c.jpg",
    ]  # fmt: skip
    assert [
        content[o : o + s] for o, s in zip(index.offsets, index.sizes, strict=True)
    ] == [b"11", b"2222", b"11", b"2222", b"c"]  # fmt: skip


def test_an_archive_cut_off_anywhere_is_noticed(archive: Path) -> None:
    whole = archive.read_bytes()
    index = index_tar(archive)
    end = int(index.offsets[-1])  # the last member is empty: here the end mark begins
    for length in [*range(0, end, 256), end, end + 511]:
        archive.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.tar is damaged, cut off"):
            index_tar(archive)
    archive.write_bytes(whole[: end + 512])  # one block of zeros is an end mark to everybody
    assert len(index_tar(archive).names) == 4


def test_an_inner_archive_cut_off_is_noticed(archive: Path) -> None:
    inner = tar_bytes([("1.jpg", b"x" * 600)])
    archive.write_bytes(tar_bytes([("n1.tar", inner[:1024]), ("n2.tar", inner)]))
    with pytest.raises(DataError, match=r"x\.tar is damaged, cut off"):
        index_tar(archive)


def test_a_damaged_header_is_not_taken_for_the_end(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[1024:1100] = b"?" * 76
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="no header at byte 1,024"):
        index_tar(archive)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "text.tar": b"no archive at all" * 100,
        "page.tar": b"<html>404</html>",
        "gzip.tar": b"\x1f\x8b" + b"x" * 600,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is damaged, cut off, or no plain tar"):
            index_tar(tmp_path / name)
    with pytest.raises(DataError, match="none.tar could not be read"):
        index_tar(tmp_path / "none.tar")


def test_long_work_is_told(archive: Path, monkeypatch) -> None:
    monkeypatch.setattr("conadv.trainer.data.sources.tar.REPORT_SECONDS", -1.0)
    counts: list[int] = []
    index_tar(archive, counts.append)
    assert counts == [1, 2, 3, 4]


# -- kept ------------------------------------------------------------------------------------------


def same(a, b) -> bool:
    parts = ("names", "offsets", "sizes", "texts")
    return a.stamp == b.stamp and all(
        np.array_equal(getattr(a, part), getattr(b, part)) for part in parts
    )


def test_an_index_is_made_once(archive: Path, said: list[str], monkeypatch) -> None:
    (archive.parent / "y.tar").write_bytes(tar_bytes([("n" * 80 + ".jpg", b"0")]))
    names = ["x.tar", "y.tar"]
    first = tar_indexes(archive.parent, names, said.append)
    assert len(said) == 1 and "indexing 2 archives" in said[0]
    assert (archive.parent / INDEX).exists()
    monkeypatch.setattr(tar_cache, "index_tar", None)
    again = tar_indexes(archive.parent, names, said.append)
    assert all(same(first[name], again[name]) for name in names)
    assert len(said) == 1


@pytest.mark.parametrize("what", ["size", "time"])
def test_a_stale_index_is_made_again_for_what_changed(
    archive: Path, said: list[str], what: str
) -> None:
    other = archive.parent / "y.tar"
    other.write_bytes(tar_bytes([("1.jpg", b"0")]))
    tar_indexes(archive.parent, ["x.tar", "y.tar"], said.append)
    status = archive.stat()
    members = [("new.jpg", b"x" * (60_000 if what == "size" else 3))]
    archive.write_bytes(tar_bytes(members))
    changed = status.st_mtime_ns + (0 if what == "size" else 1_000_000)
    os.utime(archive, ns=(changed, changed))
    found = tar_indexes(archive.parent, ["x.tar", "y.tar"], said.append)
    assert found["x.tar"].names.tolist() == [b"new.jpg"]
    assert found["y.tar"].names.tolist() == [b"1.jpg"]
    assert "indexing x.tar" in said[1] and len(said) == 2


def test_archives_added_later_join_the_index(archive: Path, said: list[str]) -> None:
    tar_indexes(archive.parent, ["x.tar"], said.append)
    (archive.parent / "y.tar").write_bytes(tar_bytes([("1.jpg", b"0")]))
    tar_indexes(archive.parent, ["y.tar"], said.append)
    tar_indexes(archive.parent, ["x.tar", "y.tar"], said.append)
    assert ["indexing x.tar" in said[0], "indexing y.tar" in said[1], len(said)] == [True, True, 2]


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_index_is_made_again(archive: Path, said: list[str], damage: bytes) -> None:
    first = tar_indexes(archive.parent, ["x.tar"], said.append)["x.tar"]
    (archive.parent / INDEX).write_bytes(damage)
    assert same(tar_indexes(archive.parent, ["x.tar"], said.append)["x.tar"], first)
    assert len(said) == 2


def test_a_folder_that_may_only_be_read(archive: Path, said, monkeypatch, cache: Path) -> None:
    monkeypatch.setattr(tar_cache.os, "access", lambda path, mode: False)
    for _ in range(2):
        tar_indexes(archive.parent, ["x.tar"], said.append)
    assert len(said) == 1
    assert [path.name for path in archive.parent.iterdir()] == ["x.tar"]
    assert [path.name for path in cache.rglob("*.npz")] == [INDEX]


def test_without_any_place_to_write(archive: Path, said, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tar_cache.os, "access", lambda path, mode: False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONADV_DATA", str(tmp_path / "file"))
    index = tar_indexes(archive.parent, ["x.tar"], said.append)["x.tar"]
    assert len(index.names) == 4
    assert "the index will not be kept" in said[0]


def test_one_works_and_the_others_read(archive: Path, monkeypatch) -> None:
    lock, calls = threading.Lock(), []

    def counted(path, found=None):
        with lock:
            calls.append(path)
        return index_tar(path, found)

    monkeypatch.setattr(tar_cache, "index_tar", counted)
    threads = [
        threading.Thread(target=tar_indexes, args=(archive.parent, ["x.tar"], lambda line: None))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_missing_archive_is_named(archive: Path, said: list[str]) -> None:
    with pytest.raises(DataError, match=r"z\.tar could not be read"):
        tar_indexes(archive.parent, ["x.tar", "z.tar"], said.append)

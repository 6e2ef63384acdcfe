"""The table of a source's images: made once, mapped by all, and nobody's own memory."""

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest

from conadv.trainer.data.sources import ShardSource, archive
from conadv.trainer.data.sources.source import ImageSource
from support.images import encoded, shard, tar_bytes


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        shard(tmp_path / "s" / "a-0.tar", [0, 2, 1]),
        shard(tmp_path / "s" / "a-1.tar", [1, 0], first=3),
    ]


def tables(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".conadv-images-*.npy"))


def facts(source: ImageSource) -> tuple[object, ...]:
    images = [(source.read(i), source.where(i)) for i in range(len(source))]
    return source.classes, source.labels.tolist(), source.fingerprint, images


def test_what_a_process_holds_does_not_grow_with_the_images(tmp_path: Path, said) -> None:
    used: list[tuple[int, int]] = []
    for count in (200, 200, 4_000):  # the first one imports things
        members = [(f"{i:06d}{end}", text) for i in range(count) for end, text in MEMBERS]
        path = tmp_path / str(len(used)) / "x.tar"
        path.parent.mkdir()
        path.write_bytes(tar_bytes(members))
        ShardSource([path], say=said.append)
        tracemalloc.start()
        source = ShardSource([path], say=said.append)
        assert source.read(count - 1) == b"image" and len(source.labels) == count
        sent = pickle.dumps(source)
        copy = pickle.loads(sent)
        assert copy.where(count - 1).endswith(f"{count - 1:06d}.jpg")
        used.append((tracemalloc.get_traced_memory()[1], len(sent)))
        tracemalloc.stop()
    (_, few_sent), (few, _), (many, many_sent) = used
    assert many < few + 20_000  # 3,800 images more, of some 35 bytes each in a table
    assert many_sent < few_sent + 100


MEMBERS = ((".jpg", b"image"), (".cls", b"0"))


def test_it_is_made_once(shards: list[Path], said, monkeypatch: pytest.MonkeyPatch) -> None:
    first = facts(ShardSource(shards, say=said.append))
    [table] = tables(shards[0].parent)
    monkeypatch.setattr("conadv.trainer.data.sources.shards.tar_indexes", None)
    source = ShardSource(shards, say=said.append)
    assert facts(source) == first == facts(pickle.loads(pickle.dumps(source)))
    assert sum("indexing" in line for line in said) == 1
    assert tables(shards[0].parent) == [table]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_one_is_made_again(shards: list[Path], said, damage: bytes | None) -> None:
    first = facts(ShardSource(shards, say=said.append))
    [table] = tables(shards[0].parent)
    table.write_bytes(table.read_bytes()[:-100] if damage is None else damage)
    assert facts(ShardSource(shards, say=said.append)) == first


def test_other_shards_have_another_one(shards: list[Path], said) -> None:
    assert len(ShardSource(shards[:1], say=said.append)) == 3
    assert len(ShardSource(shards, say=said.append)) == 5
    held = ShardSource(shards, say=said.append)
    shard(shards[1], [1, 0, 1, 2], first=3)
    os.utime(shards[1], ns=(1, 1))
    assert len(ShardSource(shards, say=said.append)) == 7
    assert held.labels.tolist() == [0, 2, 1, 1, 0]
    assert len(tables(shards[0].parent)) == 3


def test_a_folder_that_may_only_be_read(
    shards: list[Path], said, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    source = ShardSource(shards, say=said.append)
    assert tables(shards[0].parent) == [] and len(tables(cache)) == 1
    assert facts(pickle.loads(pickle.dumps(source))) == facts(source)


def test_without_any_place_it_stays_in_memory(
    shards: list[Path], said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = facts(ShardSource(shards, say=said.append))
    for table in tables(tmp_path):
        table.unlink()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONADV_DATA", str(tmp_path / "file"))
    source = ShardSource(shards, say=said.append)
    assert facts(pickle.loads(pickle.dumps(source))) == facts(source) == kept


def test_a_full_disk_is_told(shards: list[Path], said, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.ImageTable, "write", full)
    assert facts(ShardSource(shards, say=said.append))[1] == [0, 2, 1, 1, 0]
    [told] = [line for line in said if "the table of images is not kept" in line]
    assert "No space left" in told


def test_what_was_left_out_is_told_every_time(tmp_path: Path, said) -> None:
    members = [("1.jpg", encoded(1)), ("1.cls", b"0"), ("1.txt", b"text")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    for _ in range(2):
        ShardSource([tmp_path / "x.tar"], say=said.append)
    assert [line for line in said if "left out" in line] == [said[-1]] * 2
    assert "1 file left out (1 .txt)" in said[-1]


def test_an_image_that_does_not_exist(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            source.read(wrong)
        with pytest.raises(IndexError):
            source.where(wrong)

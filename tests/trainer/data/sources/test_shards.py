"""WebDataset shards on the disk."""

import io
import multiprocessing
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import ShardSource
from support.images import encoded, shard, tar_bytes


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        shard(tmp_path / "s" / "a-0.tar", [0, 2, 1]),
        shard(tmp_path / "s" / "a-1.tar", [1, 0], first=3, kind="png"),
    ]


def test_images_and_labels_in_order(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    assert (source.name, len(source)) == ("s", 5)
    assert source.classes == ("0", "1", "2")
    assert source.labels.tolist() == [0, 2, 1, 1, 0]
    assert [source.read(i) for i in range(5)] == [encoded(i) for i in range(5)]
    assert source.where(4) == f"{shards[1]}::000004.png"


def test_the_fingerprint_follows_shards_names_and_labels(tmp_path: Path, said) -> None:
    def fingerprint(place: str, name: str, labels: list[int], first: int = 0) -> str:
        path = shard(tmp_path / place / name, labels, first)
        return ShardSource([path], say=said.append).fingerprint

    first = fingerprint("a", "x.tar", [0, 1])
    assert fingerprint("b", "x.tar", [0, 1]) == first  # wherever they lie
    others = [
        fingerprint("c", "y.tar", [0, 1]),
        fingerprint("d", "x.tar", [1, 0]),
        fingerprint("e", "x.tar", [0, 1], first=1),
    ]
    assert len({first, *others}) == 4


def test_threads(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [4, 0] * 100)) == [encoded(4), encoded(0)] * 100


@pytest.mark.slow
def test_spawned_processes(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    source.read(0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(source.read, range(5))) == [encoded(i) for i in range(5)]


def test_pickles_are_small_and_whole(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.read(i) for i in range(5)] == [encoded(i) for i in range(5)]
    assert copy.fingerprint == source.fingerprint


def test_other_members_and_folders_in_an_archive(tmp_path: Path, said) -> None:
    path = tmp_path / "x.tar"
    members = [
        ("a/1.cls", b" 1\n"),
        ("a/1.seg.png", b"mask"),
        ("b/1.jpg", encoded(2)),
        ("a/1.JPG", encoded(1)),
        ("b/1.cls", b"0"),
        ("b/1.json", b"{}"),
    ]
    path.write_bytes(tar_bytes(members))
    source = ShardSource([path], say=said.append)
    assert [source.read(i) for i in range(2)] == [encoded(2), encoded(1)]
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "holds no images: a shard holds pairs"),
        ([("1.cls", b"0")], "holds no images"),
        ([("1.jpg", b"x")], r"x\.tar::1\.jpg has no label: put 1\.cls"),
        ([("1.jpg", b"x"), ("1.cls", b"cat")], r"x\.tar::1\.cls holds b'cat': a label is a number"),
        ([("1.jpg", b"x"), ("1.cls", b"0" * 100)], r"x\.tar::1\.cls holds b''"),
        ([("1.jpg", b"x"), ("1.cls", b"-1")], "a label is -1"),
        ([("1.jpg", b"x"), ("1.png", b"x"), ("1.cls", b"0")], "two images for the key 1: 1.jpg"),
    ],
)
def test_shards_that_are_none(tmp_path: Path, said, members, message: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=message):
        ShardSource([path], say=said.append)


def test_a_shard_cut_off_names_itself(shards: list[Path], said) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a-1\.tar is damaged, cut off"):
        ShardSource(shards, say=said.append)


def test_a_shard_cut_off_after_it_was_indexed_names_itself(shards: list[Path], said) -> None:
    source = ShardSource(shards, say=said.append)
    with shards[0].open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"a-0\.tar has changed"):
        source.read(0)


def test_shards_of_one_folder(shards: list[Path], tmp_path: Path, said) -> None:
    other = shard(tmp_path / "t" / "b.tar", [0])
    with pytest.raises(DataError, match="3 shards are in 2 folders"):
        ShardSource([*shards, other], say=said.append)
    with pytest.raises(DataError, match=r"a-2\.tar could not be read"):
        ShardSource([*shards, shards[0].with_name("a-2.tar")], say=said.append)


def test_nothing_is_dropped_without_a_count(tmp_path: Path, said) -> None:
    path = tmp_path / "x.tar"
    members = [
        ("n01.v2.jpg", encoded(0)),  # a key with a dot
        ("n01.v2.cls", b"0"),
        ("2.JFIF", encoded(1)),
        ("2.CLS", b"1"),
        ("2.mask.png", b"mask"),
        ("2.caption.txt", b"an owl"),
    ]
    content = io.BytesIO(tar_bytes(members))
    with tarfile.open(fileobj=content, mode="r:") as tar, tarfile.open(path, "w") as longer:
        for member in tar:
            longer.addfile(member, tar.extractfile(member))
        for name, target in (("3.jpg", "n01.v2.jpg"), ("3.cls", "2.CLS")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            longer.addfile(link)
    source = ShardSource([path], say=said.append)
    assert [source.read(i) for i in range(3)] == [encoded(0), encoded(1), encoded(0)]
    assert source.labels.tolist() == [0, 1, 1]
    assert "2 files left out (1 .txt; 1 .png)" in " ".join(said)


@pytest.mark.parametrize("label", [10**12, 15_000_000])
def test_labels_do_not_size_the_network(tmp_path: Path, said, label: int) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar_bytes(
            [("1.jpg", b"x"), ("1.cls", b"0"), ("2.jpg", b"x"), ("2.cls", f"{label}".encode())]
        )
    )
    with pytest.raises(DataError, match=rf"labels go up to {label:,}.* 2 classes only; class 1 is"):
        ShardSource([path], say=said.append)


def test_archives_are_not_followed_for_ever(tmp_path: Path, said) -> None:
    inner = tar_bytes([("1.jpg", encoded(1)), ("1.cls", b"0")])
    for _ in range(3):
        inner = tar_bytes([("a.tar", inner)])
    (tmp_path / "x.tar").write_bytes(inner)
    with pytest.raises(DataError, match="an archive in an archive in an archive"):
        ShardSource([tmp_path / "x.tar"], say=said.append)

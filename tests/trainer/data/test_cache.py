"""Files that are whole or not there, and one process at a time."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data import cache
from conadv.trainer.data.cache import cache_dir, locked, scratch, write_whole

fcntl = pytest.importorskip("fcntl", reason="locks of files are POSIX's")


def silent(line: str) -> None:
    pass


# -- where -----------------------------------------------------------------------------------------


def test_the_folder_can_be_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONADV_DATA", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONADV_DATA", "~/images")
    assert cache_dir() == tmp_path / "images"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, ".cache/conadv"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/conadv"),
        ("darwin", {}, "Library/Caches/conadv"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/conadv"),
    ],
)
def test_each_platform_has_its_folder(monkeypatch, tmp_path, platform, variables, expected) -> None:
    for name in ("CONADV_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert cache_dir() == tmp_path / expected


# -- whole or not at all ---------------------------------------------------------------------------


def test_a_file_appears_with_all_its_content(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_whole(file, lambda target: target.write(b"new"))
    assert file.read_bytes() == b"new"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(DataError, match="No space left.*free some disk.*CONADV_DATA"):
        write_whole(file, lambda target: target.write(b"new"))
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, stop) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def half(target) -> None:
        target.write(b"ne")
        raise stop

    with pytest.raises(stop):
        write_whole(file, half)
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_a_scratch_folder_goes_away_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path) as folder:
        (folder / "half").write_bytes(b"a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# -- one at a time ---------------------------------------------------------------------------------

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / cache.LOCK)], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_another_process_is_waited_for_and_told_of(tmp_path: Path, holder) -> None:
    lines: list[str] = []
    refused = pytest.raises(DataError, match="Another process.*wait for it, or end it")
    with refused, locked(tmp_path, lines.append, wait_seconds=0.3):
        raise AssertionError("it has no right to be here")
    assert len(lines) == 1 and "waiting for another process" in lines[0]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path, holder) -> None:
    threading.Timer(0.3, holder.kill).start()
    with locked(tmp_path, silent, wait_seconds=30):
        pass
    assert holder.wait(10) != 0


def test_two_threads_never_hold_it_together(tmp_path: Path) -> None:
    inside: list[int] = []
    most = []

    def work() -> None:
        with locked(tmp_path, silent, wait_seconds=30):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_what_the_dead_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with locked(tmp_path, silent), scratch(tmp_path) as living:
        kept = living.name
    (tmp_path / kept).mkdir()  # as if the process had been killed inside
    (tmp_path / kept / "half.tgz").write_bytes(b"a")
    (tmp_path / ".cifar10.npz.host-1-1.partial").write_bytes(b"a")
    others = {"mine.tgz", ".hidden", "cifar10.npz"}
    for name in others:
        (tmp_path / name).write_bytes(b"b")
    with locked(tmp_path, silent):
        assert {f.name for f in tmp_path.iterdir()} == {*others, cache.LOCK}


def test_a_thread_may_take_its_lock_again(tmp_path: Path) -> None:
    with locked(tmp_path, silent), locked(tmp_path, silent, wait_seconds=0):
        pass
    with locked(tmp_path, silent), ThreadPoolExecutor(1) as pool:
        another = pool.submit(locked(tmp_path, silent, wait_seconds=0).__enter__)
        with pytest.raises(DataError, match="Another process"):
            another.result()


def test_a_file_system_without_locks_still_works(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    living = tmp_path / f"{cache._SCRATCH}of-somebody-else"
    living.mkdir()
    with locked(tmp_path, silent):
        pass
    assert living.is_dir()  # who cannot lock cannot know that it is dead


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused = pytest.raises(DataError, match="could not be written.*CONADV_DATA")
    with refused, locked(tmp_path / "file" / "cache", silent):
        pass

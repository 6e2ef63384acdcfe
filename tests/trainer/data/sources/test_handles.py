"""Reading pieces of files from threads and processes."""

import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import handles
from conadv.trainer.data.sources.handles import Handles, stamp_of


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 1000 + bytes(range(100)))
    return paths


def test_pieces(files: list[Path]) -> None:
    reader = Handles(files)
    assert reader.read(3, 998, 5) == bytes([3, 3, 0, 1, 2])
    assert reader.read(0, 1100, 0) == b""


def test_nothing_is_opened_before_it_is_read(tmp_path: Path) -> None:
    reader = Handles([tmp_path / "none"])
    with pytest.raises(DataError, match="none could not be read"):
        reader.read(0, 0, 1)


def test_many_threads_and_few_open_files(files: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(handles, "LIMIT", 2)
    reader = Handles(files, [stamp_of(path) for path in files])

    def read(i: int) -> bool:
        file, offset = i % 5, 1000 + i % 90
        return reader.read(file, offset, 4) == bytes(range(i % 90, i % 90 + 4))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))
    assert len(reader._mine.open) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_files_are_closed(files: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(handles, "LIMIT", 2)
    before = len(os.listdir("/proc/self/fd"))
    reader = Handles(files)
    for file in range(5):
        reader.read(file, 0, 1)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_open_files_are_not_pickled(files: list[Path]) -> None:
    reader = Handles(files)
    reader.read(0, 0, 1)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._mine is None
    assert copy.read(1, 0, 2) == b"\1\1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_fork_opens_its_own_even_if_the_lock_was_held(files: list[Path]) -> None:
    reader = Handles(files)
    reader.read(0, 0, 1)
    with reader._mine.lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12, about forks and threads
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if reader.read(2, 0, 2) == b"\2\2" else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.read(2, 0, 1) == b"\2"


def test_a_file_cut_off_is_named(files: list[Path]) -> None:
    reader = Handles(files)
    with pytest.raises(DataError, match=r"2 ends within what is read \(200 bytes from 1,000 on\)"):
        reader.read(2, 1000, 200)


def test_a_file_that_changed_is_not_read(files: list[Path]) -> None:
    reader = Handles(files, [stamp_of(path) for path in files])
    reader.read(0, 0, 1)
    files[1].write_bytes(b"something else")
    with pytest.raises(DataError, match="1 has changed since it was indexed: open the source"):
        reader.read(1, 0, 1)


def test_reads_in_parts_are_put_together(files: list[Path], monkeypatch) -> None:
    pread = os.pread
    monkeypatch.setattr(
        handles.os, "pread", lambda fd, count, offset: pread(fd, min(count, 3), offset)
    )
    assert Handles(files).read(0, 1000, 50) == bytes(range(50))


def test_without_pread(files: list[Path], monkeypatch) -> None:
    monkeypatch.delattr(handles.os, "pread")
    reader = Handles(files)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: reader.read(i % 5, 1000 + i % 90, 2), range(300))
        assert list(found) == [bytes([i % 90, i % 90 + 1]) for i in range(300)]

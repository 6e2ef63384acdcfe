"""A study's journal goes on behind half a line."""

import errno
import os
from pathlib import Path

import pytest

from conadv.lab.study import journal
from conadv.lab.study.journal import Journal


def test_half_a_line_is_dropped_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "storage.log"
    first = Journal(path)
    first.append_logs([{"n": 1}, {"n": 2}])
    with path.open("ab") as file:
        file.write(b'{"n": 3, "text": "' + b"x" * 10_000)
    assert [log["n"] for log in Journal(path).read_logs(0)] == [1, 2]
    assert [log["n"] for log in first.read_logs(0)] == [1, 2]
    first.append_logs([{"n": 4}])
    assert [log["n"] for log in first.read_logs(2)] == [4]
    assert [log["n"] for log in Journal(path).read_logs(0)] == [1, 2, 4]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "storage.log"
    log = Journal(path)
    log.append_logs([{"n": 1}])
    whole = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append_logs([{"n": 2}])
    assert path.read_bytes() == whole
    log.append_logs([{"n": 3}])  # the lock is free
    assert [one["n"] for one in log.read_logs(0)] == [1, 3]

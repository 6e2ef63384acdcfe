"""Logs on a disk that is full for a while, or for good: no line is lost that could be kept."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conadv.errors import RunFolderError
from conadv.trainer.run import lines
from conadv.trainer.run.lines import JsonLines, read_lines, truncate_after


class Disk:
    """Takes so many bytes and then is full, until it gets more."""

    def __init__(self, write: Callable[[int, bytes], int], free: int) -> None:
        self._write, self.free = write, free

    def __call__(self, file: int, data: bytes) -> int:
        if not self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self._write(file, data[: self.free])
        self.free -= count
        return count


def test_lines_wait_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    disk = Disk(os.write, 30)
    monkeypatch.setattr(lines.os, "write", disk)
    log = JsonLines(path, said.append)
    for step in range(1, 5):
        log.append({"step": step, "text": "x" * 5})
    log.sync()
    assert path.stat().st_size == 30 and path.read_bytes()[-1:] != b"\n"  # half a line
    assert len(said) == 1 and f"{path} cannot be written (No space left on device)" in said[0]
    disk.free = 10_000
    log.append({"step": 5})
    log.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5]
    assert len(said) == 2 and "no line is missing" in said[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.symlink_to("/dev/full")
    with JsonLines(path, said.append) as log:
        log.append({"step": 1})
        log.append({"step": 2})
    assert len(said) == 2
    assert f"2 lines of {path} could not be written" in said[1] and "--resume" in said[1]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="Is a directory"):
        JsonLines(tmp_path)


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timing.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\0{"st\n{"step": 2}\n[3]\n{"step": 4}\n{"step"')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 4]
    assert truncate_after(path, 3) == 2
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert truncate_after(path, 0) == 0
    assert truncate_after(tmp_path / "absent", 3) == 0

"""Tests of what is said when other programs use a training's cores."""

from pathlib import Path

import pytest

from conadv.trainer.run import contention
from conadv.trainer.run.contention import Contention


class Machine:
    """A clock and the kernel's count of how long the main thread waited for a core."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.waited = 3.0
        self.passes(0, 0)

    def passes(self, seconds: float, waiting: float) -> None:
        self.now += seconds
        self.waited += waiting * seconds
        self.path.write_text(f"{int(self.now * 1e9)} {int(self.waited * 1e9)} 17\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path / "schedstat")
    monkeypatch.setattr(contention, "SCHEDSTAT", found.path)
    monkeypatch.setattr(contention.time, "monotonic", lambda: found.now)
    return found


def test_it_is_said_once_and_with_what_to_do(machine: Machine) -> None:
    shared = Contention(threads=2)
    machine.passes(4, waiting=0.6)
    assert shared.notice() is None  # too early to tell
    machine.passes(7, waiting=0.5)
    told = shared.notice()
    assert told is not None and "54% of the last 11 s" in told and "hardware.threads=1" in told
    machine.passes(20, waiting=0.9)
    assert shared.notice() is None


def test_each_window_counts_for_itself(machine: Machine) -> None:
    shared = Contention(threads=8)
    for _ in range(30):
        machine.passes(11, waiting=0.1)
        assert shared.notice() is None
    machine.passes(11, waiting=0.5)
    assert shared.notice() is not None


def test_one_thread_has_nothing_to_gain(machine: Machine) -> None:
    shared = Contention(threads=1)
    machine.passes(60, waiting=0.5)
    assert shared.notice() is None


@pytest.mark.parametrize("content", [None, "", "0 0 0\n"])
def test_kernels_that_do_not_count(content: str | None, machine: Machine) -> None:
    """Not Linux, or one without statistics of its scheduler."""
    machine.path.unlink()
    if content is not None:
        machine.path.write_text(content)
    shared = Contention(threads=2)
    machine.now += 60
    assert shared.notice() is None

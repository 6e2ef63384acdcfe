"""One run folder, one run: who is let in, who is told what, and what a takeover does."""

import json
import os
import re
import threading
from pathlib import Path

import pytest

from conadv.errors import RunHeldError
from conadv.trainer.run.lock.claims import Claim
from conadv.trainer.run.lock.run_lock import LOCK, RunLock


def quick(root: Path) -> RunLock:
    return RunLock(root, beat=0.05, stale=0.4)


def far(root: Path, generation: int = 0, **more: object) -> Path:
    """The lock of a process on another machine."""
    path = Claim(root / LOCK, generation).path
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": "far", "place": "far pid:[1]", "pid": 7, "started": "x", "time": 0, **more}
    path.write_text(json.dumps(owner))
    return path


def test_a_second_one_is_told_who_is_there(tmp_path: Path) -> None:
    first, second = quick(tmp_path), quick(tmp_path)
    first.take()
    with pytest.raises(RunHeldError, match=rf"process {os.getpid()} on .*since \d{{4}}-\d\d-\d\d"):
        second.take()
    second.release()  # nothing of its own
    first.check()
    first.release()
    assert not tmp_path.exists()  # nothing else came into the folder
    second.take()
    (tmp_path / "recipe.yaml").touch()
    second.release()
    assert (tmp_path / "recipe.yaml").exists()
    quick(tmp_path).take()


def test_the_dead_of_another_machine_are_waited_for(tmp_path: Path) -> None:
    far(tmp_path)
    said: list[str] = []
    lock = quick(tmp_path)
    lock.take(said.append)
    lock.check()
    lock.release()
    assert len(said) == 1 and re.search(
        r"process 7 on far \(since 1970.* whether it lives", said[0]
    )


def test_the_living_of_another_machine_are_seen_by_their_beats(tmp_path: Path) -> None:
    path, done = far(tmp_path), threading.Event()

    def live() -> None:
        while not done.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunHeldError, match="process 7 on far"):
            quick(tmp_path).take()
    finally:
        done.set()
        thread.join()


def test_who_was_asleep_is_told_that_another_goes_on(tmp_path: Path) -> None:
    lock = quick(tmp_path)
    lock.take()
    far(tmp_path, 1)
    with pytest.raises(RunHeldError, match="took this process for dead"):
        for _ in range(1000):
            threading.Event().wait(0.01)
            lock.check()
    lock.release()
    assert Claim(tmp_path / LOCK, 1).path.exists()


def test_the_next_attempt_of_a_launch_need_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = {"TORCHELASTIC_RUN_ID": "job", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    far(tmp_path, launch="job a 1")
    said: list[str] = []
    lock = quick(tmp_path)
    lock.take(said.append)
    lock.release()
    assert said == []


def test_earlier_locks_do_not_pile_up(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    for _ in range(5):
        lock = quick(tmp_path)
        lock.take()
        lock.release()
    assert sorted(p.name for p in (tmp_path / LOCK).glob("*.json")) == [
        "claim-3.json",
        "claim-4.json",
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_an_orphan_of_a_launch_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    orphan = quick(tmp_path)
    orphan.take()
    path = Claim(tmp_path / LOCK, 0).path
    path.write_text(json.dumps({**json.loads(path.read_text()), "parent": 1 << 30}))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    said: list[str] = []

    def end(text: str) -> None:
        said.append(text)
        orphan.release()

    quick(tmp_path).take(end)
    (line,) = said
    assert "it ends, for its launcher is gone" in line

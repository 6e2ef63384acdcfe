"""Who works at a run: one at a time, and somebody else after a death."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conadv.trainer.run.lock.claims import Claim, Claims, process_start

TASK = "cell/seed-0"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def foreign(folder: Path, generation: int = 0) -> Path:
    """The claim of a process on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = Claim(folder, generation).path
    path.write_text(json.dumps({"host": "far", "place": "far pid:[1]", "pid": 1, "started": "x"}))
    return path


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    gate, won = threading.Barrier(16), []

    def go() -> None:
        claims = Claims(tmp_path, 60)
        gate.wait()
        won.append(claims.take(TASK))

    threads = [threading.Thread(target=go) for _ in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(won) == 16 and sum(claim is not None for claim in won) == 1


def test_of_many_that_see_a_death_one_takes_over(tmp_path: Path) -> None:
    foreign(tmp_path / TASK)
    clock = Clock()
    everybody = [Claims(tmp_path, 60, clock) for _ in range(16)]
    assert [claims.take(TASK) for claims in everybody] == [None] * 16
    clock.now = 61
    gate, won = threading.Barrier(16), []

    def go(claims: Claims) -> None:
        gate.wait()
        won.append(claims.take(TASK))

    threads = [threading.Thread(target=go, args=(claims,)) for claims in everybody]
    [t.start() for t in threads]
    [t.join() for t in threads]
    (claim,) = [c for c in won if c is not None]
    assert claim.generation == 1


def test_signs_of_life_keep_a_claim(tmp_path: Path) -> None:
    path, clock = foreign(tmp_path / TASK), Clock()
    claims = Claims(tmp_path, 60, clock)
    for _ in range(5):  # its clock may be hours off: only changes count
        clock.now += 50
        os.utime(path, ns=(0, int(clock.now)))
        assert claims.take(TASK) is None and claims.working(TASK) is not None
    clock.now += 61
    assert claims.working(TASK) is None
    claim = claims.take(TASK)
    assert claim is not None and claims.deaths(claim) == 1
    assert not Claim(tmp_path / TASK, 0).owned() and claim.owned()


def test_a_dead_process_of_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from conadv.trainer.run.lock.claims import Claims\n"
        f"assert Claims(Path(sys.argv[1]), 1e9).take({TASK!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    claims = Claims(tmp_path, 1e9)
    claim = claims.take(TASK)
    assert claim is not None and claim.generation == 1 and claims.deaths(claim) == 1
    assert Claims(tmp_path, 1e9).take(TASK) is None  # this process lives


def test_a_process_number_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    claims = Claims(tmp_path, 1e9)
    first = claims.take(TASK)
    assert first is not None
    content = json.loads(first.path.read_text())
    assert content["started"] == process_start(os.getpid())
    first.path.write_text(json.dumps({**content, "started": "earlier"}))
    assert claims.take(TASK) is not None


def test_what_is_given_back_can_be_taken_and_is_no_death(tmp_path: Path) -> None:
    claims = Claims(tmp_path, 1e9)
    first = claims.take(TASK)
    assert first is not None
    first.release()
    assert claims.working(TASK) is None
    second = claims.take(TASK)
    assert second is not None and claims.deaths(second) == 0


def test_a_claim_cut_short_by_a_full_disk_counts_by_its_age(tmp_path: Path) -> None:
    path, clock = foreign(tmp_path / TASK), Clock()
    path.write_text('{"host": "fa')
    claims = Claims(tmp_path, 60, clock)
    assert claims.take(TASK) is None
    clock.now = 61
    assert claims.take(TASK) is not None


def test_beats_touch_the_file_and_tell_of_a_takeover(tmp_path: Path) -> None:
    claim = Claims(tmp_path, 60).take(TASK)
    assert claim is not None
    os.utime(claim.path, ns=(0, 0))
    heard: list[bool] = []
    with claim.beating(0.01, heard.append):
        while True not in heard:
            time.sleep(0.005)
        foreign(tmp_path / TASK, 1)
        while False not in heard:
            time.sleep(0.005)
    assert claim.path.stat().st_mtime_ns > 0
    count = len(heard)
    time.sleep(0.05)
    assert len(heard) == count  # it has ended with the block


@pytest.mark.parametrize("pid", [2**22 + 1])
def test_a_process_that_never_was_has_no_start(pid: int) -> None:
    assert process_start(pid) is None

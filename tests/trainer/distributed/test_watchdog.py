"""The watchdogs of several ranks, as threads of this process, with a store in memory."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from conadv.errors import doing
from conadv.trainer.distributed import World
from conadv.trainer.distributed import watchdog as watching
from conadv.trainer.distributed.watchdog import EXIT_CODE, NoWatchdog, Watchdog
from conadv.trainer.start import _on_every_rank

TIMEOUT = 2.0


class Group:
    """Watchdogs on one store, and with which exit code each ended its process."""

    def __init__(self, size: int, timeout: float = TIMEOUT) -> None:
        store = dist.HashStore()
        self.ended: dict[int, int] = {}
        self.ranks = [
            Watchdog(store, rank, size, timeout, stop=lambda code, rank=rank: self._end(rank, code))
            for rank in range(size)
        ]

    def _end(self, rank: int, code: int) -> None:
        self.ended[rank] = code

    def kill(self, rank: int) -> None:
        """As if the process had been killed: it writes nothing any more."""
        self.ranks[rank]._put = lambda: None  # type: ignore[method-assign]
        self.ranks[rank]._verdict = watching.Verdict("", -1)  # ends the thread
        self.ranks[rank]._closing = True

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Group]]:
    monkeypatch.setattr(watching, "GRACE", 0.1)
    made: list[Group] = []

    def make(*arguments: Any) -> Group:
        made.append(Group(*arguments))
        return made[-1]

    yield make
    for group in made:
        group.close()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_stuck_process_ends_all_with_one_message(
    stuck: int, groups: Callable[..., Group], capfd: pytest.CaptureFixture[str]
) -> None:
    group = groups(3)
    with doing("taking step 7"):
        for rank, watched in enumerate(group.ranks):
            if rank != stuck:
                watched.waiting().__enter__()
        until(lambda: len(group.ended) == 3)
    assert set(group.ended.values()) == {EXIT_CODE}
    errors = capfd.readouterr().err
    assert errors.count("error:") == 1
    assert (
        f"rank {stuck} (process" in errors
        and "is stuck" in errors
        and "last seen taking step 7" in errors
    )
    assert "--resume" in errors


def test_between_two_things_a_process_is_where_it_last_waited(
    groups: Callable[..., Group],
) -> None:
    watched = groups(1).ranks[0]
    with doing("the whole"), doing("a part"), watched.waiting():
        pass
    with doing("something quick"):
        pass
    assert watched._activity() == "a part, the whole"
    with doing("the end"):
        assert watched._activity() == "the end"


@pytest.mark.parametrize("killed", [0, 2])
def test_a_broken_connection_names_who_is_gone(
    killed: int, groups: Callable[..., Group], capfd: pytest.CaptureFixture[str]
) -> None:
    group = groups(3)
    until(lambda: all(rank._sequence > 1 for rank in group.ranks))
    group.kill(killed)
    left = [rank for rank in range(3) if rank != killed]
    found: dict[int, Any] = {}

    def notice(rank: int) -> None:
        found[rank] = group.ranks[rank].lost()
        group.ranks[rank].close()

    threads = [threading.Thread(target=notice, args=(rank,)) for rank in left]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert group.ended == {}  # their main threads did it
    assert found[left[0]] == found[left[1]] is not None
    assert f"rank {killed} (process" in found[left[0]].message
    assert capfd.readouterr().err.count("is gone") == 1


def test_a_failure_is_told_by_the_one_that_fails(
    groups: Callable[..., Group], capfd: pytest.CaptureFixture[str]
) -> None:
    group = groups(3, 60.0)
    assert group.ranks[1].fail("OutOfMemoryError: too big") is True
    assert group.ranks[2].fail("OutOfMemoryError: too big") is False
    until(lambda: group.ended == {0: EXIT_CODE})
    assert capfd.readouterr().err == ""
    verdict = group.ranks[0].lost()
    assert verdict is not None and verdict.teller == 1 and "too big" in verdict.message


def test_processes_leave_one_after_the_other(groups: Callable[..., Group]) -> None:
    group = groups(3, 1.0)
    group.ranks[0].close()
    with group.ranks[1].waiting():
        pass
    time.sleep(3)  # longer than the time limit and the time that counts as silence
    assert group.ended == {} and group.ranks[2]._verdict is None


def test_without_a_store_nothing_is_stopped(groups: Callable[..., Group]) -> None:
    group = groups(2, 60.0)

    def gone(*arguments: Any) -> Any:
        raise dist.DistNetworkError("connection reset")

    for rank in group.ranks:
        # All at once: its thread may be between any two calls.
        names = ("set", "get", "multi_get", "check", "compare_set")
        rank._store = type("Store", (), dict.fromkeys(names, gone))()
    until(lambda: all(rank._known.is_set() for rank in group.ranks))
    assert group.ranks[0].lost() is None
    assert group.ranks[1].fail("DataError: no images") is True
    assert group.ended == {}


class Counting:
    """A store in memory that counts the keys that each call touches."""

    def __init__(self, store: dist.Store) -> None:
        self.store, self.keys = store, 0

    def __getattr__(self, name: str) -> Any:
        def call(first: Any, *more: Any) -> Any:
            self.keys += len(first) if isinstance(first, list) else 1
            return getattr(self.store, name)(first, *more)

        return call


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_control_traffic_of_a_process_does_not_grow(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys touched per beat, with the first judges alive or silent; one judge reads them all."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: None)
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching, "_line_of", lambda thread: "")
    touched: dict[int, tuple[int, int]] = {}
    for size in (16, 64, 256, 4096):
        store = dist.HashStore()
        counted = [Counting(store) for _ in range(size)]
        ranks = [Watchdog(counted[rank], rank, size, 300.0) for rank in range(size)]
        quiet = watching.judges(size)[:silent]
        for watched in ranks:
            watched._put()
        for _ in range(12):
            now[0] += ranks[0]._interval
            for one in counted:
                one.keys = 0
            for rank, watched in enumerate(ranks):
                if rank not in quiet:
                    watched._put()
                    watched._hear()
        keys = sorted(one.keys for one in counted)
        touched[size] = keys[-2], keys[-1]
        assert keys[-1] >= 2 * size  # the judge
        assert size / ranks[0]._interval <= 1000
    most = [others for others, _ in touched.values()]
    assert most == [most[0]] * 4 and most[0] <= 10


def test_where_the_main_thread_is() -> None:
    assert watching._line_of(threading.get_ident()) == ""  # tests are not the package
    inside = _on_every_rank(World(), lambda: watching._line_of(threading.get_ident()))
    assert inside.startswith("trainer/start.py:") and inside.endswith(" in _on_every_rank")


def test_a_process_on_its_own() -> None:
    alone = NoWatchdog()
    with alone.waiting():
        pass
    assert alone.fail("anything") and alone.lost() is None
    alone.close()

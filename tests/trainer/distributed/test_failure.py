"""Who is at fault, from made-up beats and a made-up clock."""

from dataclasses import replace

import pytest

from conadv.trainer.distributed.failure import Beat, Judge, Verdict


def beats(*states: str, waits: tuple[int, ...] = (), sequence: int = 1) -> list[Beat]:
    counts = waits or (0,) * len(states)
    return [
        Beat(sequence, n, state, "taking step 4", f"run.py:{rank}", f"process {rank}")  # type: ignore[arg-type]
        for rank, (state, n) in enumerate(zip(states, counts, strict=True))
    ]


def watch(
    judge: Judge, seen: list[Beat], seconds: int, silent: tuple[int, ...] = ()
) -> tuple[Verdict | None, int]:
    """Look once a second at processes that do nothing but live; verdict and time."""
    for now in range(1, seconds + 1):
        shown = [b if r in silent else replace(b, sequence=now) for r, b in enumerate(seen)]
        found = judge.look(shown, float(now))
        if found is not None:
            return found, now
    return None, seconds


def test_beats_and_verdicts_travel_as_text() -> None:
    beat = Beat(3, 2, "lost", "step 1", "a.py:1 in f", "process 1")
    assert Beat.unpacked(beat.packed().encode()) == beat
    verdict = Verdict('it "was" é', 3)
    assert Verdict.unpacked(verdict.packed()) == verdict


def test_processes_that_get_on_are_left_alone() -> None:
    judge = Judge(2, timeout=10)
    for now in range(100):
        state = "waiting" if now % 2 else "working"
        assert judge.look(beats(state, "working", waits=(now, now), sequence=now), now) is None


def test_a_process_that_computes_for_long_is_not_stuck_while_nobody_waits() -> None:
    found, _ = watch(Judge(2, timeout=10), beats("working", "working"), 1000)
    assert found is None


@pytest.mark.parametrize(("stuck", "teller"), [(1, 0), (0, 1)])
def test_one_that_does_not_come_is_stuck(stuck: int, teller: int) -> None:
    states = ["waiting"] * 3
    states[stuck] = "working"
    found, seconds = watch(Judge(3, timeout=10), beats(*states), 100)
    assert found is not None and seconds == 12
    assert found.teller == teller
    assert found.message == (
        f"rank {stuck} (process {stuck}) of 3 is stuck: the others have waited for it for 10 s "
        f"(hardware.timeout); last seen taking step 4 at run.py:{stuck}."
    )


def test_one_that_waits_somewhere_else_is_stuck() -> None:
    found, _ = watch(Judge(3, 10), beats(*["waiting"] * 3, waits=(7, 7, 6)), 100)
    assert found is not None and found.message.startswith("rank 2 (process 2) of 3 is stuck")


def test_all_wait_in_the_same_place() -> None:
    found, _ = watch(Judge(2, 10), beats("waiting", "waiting", waits=(3, 3)), 100)
    assert found is not None and "network" in found.message and found.teller == 0


def test_silence_with_a_broken_connection_is_believed_at_once() -> None:
    found, seconds = watch(Judge(3, 300), beats("lost", "working", "lost"), 400, silent=(1,))
    assert found is not None and seconds == 7
    assert found.message.startswith("rank 1 (process 1) of 3 is gone: no sign of life for 6 s")


@pytest.mark.parametrize("beats_missed", [3, 4, 6])
def test_one_that_was_killed_is_gone_and_not_stuck(beats_missed: int) -> None:
    """The others wait for it for longer than it has been silent, and no connection broke."""
    judge = Judge(2, timeout=6)
    for now in range(20):
        alive = now < 7 - beats_missed
        said = beats("waiting", "working", sequence=now)
        if not alive:
            said[1] = replace(said[1], sequence=6 - beats_missed)
        found = judge.look(said, now)
        if found is not None:
            break
    assert found is not None and now == 7
    assert found.message.startswith("rank 1 (process 1) of 2 is gone: no sign of life for ")
    assert "last seen taking step 4" in found.message


def test_silence_alone_takes_longer() -> None:
    found, seconds = watch(Judge(3, 300), beats(*["waiting"] * 3), 400, silent=(0, 2))
    assert found is not None and seconds == 62
    assert "ranks 0 (process 0), 2 (process 2) of 3 are gone" in found.message
    assert found.teller == 1


def test_a_broken_connection_among_the_living() -> None:
    """Somebody's collective gave up waiting: those that did not notice were not there."""
    found, seconds = watch(Judge(3, 300), beats("lost", "working", "lost"), 400)
    assert found is not None and seconds == 12
    assert found.message.startswith("rank 1 (process 1) of 3 did not come where the others waited")
    found, _ = watch(Judge(2, 300), beats("lost", "lost"), 400)
    assert found is not None and "network" in found.message


def test_processes_that_have_left_are_not_missed() -> None:
    judge = Judge(3, 10)
    assert watch(judge, beats("done", "working", "done"), 200, silent=(0, 2))[0] is None
    assert watch(judge, beats("done", "done", "done"), 200, silent=(0, 1, 2))[0] is None


def test_many_are_not_all_named() -> None:
    states = ["waiting"] + ["working"] * 20
    found, _ = watch(Judge(21, 10), beats(*states), 100)
    assert found is not None and "and 12 more of 21 are stuck" in found.message

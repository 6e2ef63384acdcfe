"""All processes of an attempt find one new name, whatever earlier attempts left behind."""

import threading
import time

import pytest
import torch.distributed as dist

from conadv.trainer.distributed.attempt import agree_on_attempt


class Counted:
    """A store that counts what is asked of it."""

    def __init__(self, store: dist.Store) -> None:
        self.store, self.sets = store, 0

    def set(self, key: str, value: str) -> None:
        self.sets += 1
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        return self.store.get(key)

    def check(self, keys: list[str]) -> bool:
        return self.store.check(keys)


def attempt(store: dist.Store, size: int, late: int | None = None) -> tuple[list[str], list[int]]:
    names, counted = [""] * size, [Counted(store) for _ in range(size)]

    def go(rank: int) -> None:
        if rank == late:
            time.sleep(0.2)
        names[rank] = agree_on_attempt(counted[rank], rank, size, 30)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(size)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return names, [one.sets for one in counted]


@pytest.mark.parametrize("late", [None, 0, 1, 2])
def test_attempts_one_after_the_other_in_one_store(late: int | None) -> None:
    store = dist.HashStore()
    found = [attempt(store, size, late) for size in (5, 5, 3, 8)]
    assert all(len(set(names)) == 1 for names, _ in found)
    assert len({names[0] for names, _ in found}) == 4


def test_messages_of_a_process_do_not_grow_with_their_number() -> None:
    for size in (4, 32):
        store = dist.HashStore()
        attempt(store, size)
        _, sets = attempt(store, size)  # stale greetings get an answer too
        assert max(sets) <= 6


def test_a_process_that_does_not_come() -> None:
    with pytest.raises(RuntimeError, match="rank 1 did not come"):
        agree_on_attempt(dist.HashStore(), 0, 2, 0.1)
    with pytest.raises(RuntimeError, match="rank 0 did not come"):
        agree_on_attempt(dist.HashStore(), 1, 2, 0.1)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)])
def test_processes_that_were_told_different_numbers(sizes: tuple[int, int]) -> None:
    store, said = dist.HashStore(), ["", ""]

    def go(rank: int) -> None:
        try:
            agree_on_attempt(store, rank, sizes[rank], 30)
        except RuntimeError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in (0, 1)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for rank, message in enumerate(said):
        assert message == (
            f"rank {rank} was started as one of {sizes[rank]} processes, "
            f"rank {1 - rank} as one of {sizes[1 - rank]}"
        )

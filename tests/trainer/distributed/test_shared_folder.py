"""All ranks must see one run folder; who does not is named before the first step."""

import threading
from pathlib import Path
from typing import Any

import pytest

from conadv.errors import DistributedError
from conadv.trainer.distributed import World
from conadv.trainer.distributed.shared_folder import check_same_folder


class Threads(World):
    """A rank that is a thread of this process."""

    barrier: threading.Barrier
    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(20)
        found = list(self.values)
        self.barrier.wait(20)
        return found

    def first(self, value: Any) -> Any:
        return self.gather(value)[0]


def problems(folders: list[Path], machines: int) -> list[str | None]:
    """What each rank raises; the ranks are dealt out to so many machines."""
    size = len(folders)
    found: list[str | None] = [None] * size
    barrier, values = threading.Barrier(size), [None] * size

    def go(rank: int) -> None:
        world = Threads(rank, size, rank % (size // machines), size // machines)
        object.__setattr__(world, "barrier", barrier)
        object.__setattr__(world, "values", values)
        try:
            check_same_folder(folders[rank], world, patience=0.3)
        except DistributedError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(size)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return found


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_one_folder(machines: int, tmp_path: Path) -> None:
    assert problems([tmp_path] * 4, machines) == [None] * 4
    assert not list(tmp_path.iterdir())


def test_a_machine_with_a_folder_of_its_own(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    first, *others = problems([shared, shared, own, own], 2)
    assert first is not None and all(other == first for other in others)
    assert "rank 2 on" in first and "rank 3 on" in first and "rank 1 on" not in first
    assert "does not see what rank 0 wrote" in first and "storage that all machines see" in first
    assert not list(shared.iterdir())


def test_a_machine_that_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name.endswith("-2.partial"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    first, *others = problems([tmp_path] * 4, 2)
    assert first is not None and all(other == first for other in others)
    assert "rank 2 on" in first and "cannot write into it (Permission denied)" in first

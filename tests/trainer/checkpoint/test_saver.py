"""When checkpoints are due, and what a write that fails leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.saver import Saving
from conadv.trainer.distributed import World
from conadv.trainer.recipe.sections import CheckpointSection


class Disk:
    """Makes the store's writes fail while `full`."""

    def __init__(self, saving: Saving) -> None:
        self.full = False
        self._save = saving.store.save
        saving.store.save = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: Any, **options: Any) -> Path:
        if self.full:
            raise CheckpointError("the disk is full.")
        return self._save(*arguments, **options)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def saving(tmp_path: Path, said: list[str]):
    settings = CheckpointSection(every_steps=4, every_minutes=None)
    made = Saving(settings, tmp_path, World(), lambda: {"step": 0}, said.append)
    yield made
    made.close()


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.pt"))


def test_due_counts_from_the_last_one(saving: Saving, tmp_path: Path) -> None:
    assert [saving.due(step) for step in (3, 4, 5)] == [False, True, True]
    saving.start(4)
    saving.look(wait=True)
    assert steps(tmp_path) == [4]
    assert [saving.due(step) for step in (7, 8)] == [False, True]
    saving.begin(20)
    assert [saving.due(step) for step in (23, 24)] == [False, True]


def test_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("conadv.trainer.checkpoint.saver.time.monotonic", lambda: now[0])
    settings = CheckpointSection(every_steps=None, every_minutes=2)
    saving = Saving(settings, tmp_path, World(), lambda: {"step": 0}, print)
    assert not saving.due(1)
    now[0] += 121
    assert saving.due(1)
    saving.start(1)
    assert not saving.due(2)
    saving.close()


def test_a_failed_write_is_told_and_waits_its_turn(
    saving: Saving, tmp_path: Path, said: list[str]
) -> None:
    disk = Disk(saving)
    saving.start(4)
    saving.look(wait=True)
    disk.full = True
    saving.start(8)
    saving.look(wait=True)
    assert said == ["warning: the disk is full. Training goes on."]
    assert steps(tmp_path) == [4]
    assert [saving.due(step) for step in (11, 12)] == [False, True]  # not at every step
    disk.full = False
    saving.ensure_saved(9)  # what is missing at the end is written
    assert steps(tmp_path) == [4, 9]


def test_the_best_is_the_best_that_was_written(saving: Saving, tmp_path: Path) -> None:
    disk = Disk(saving)
    saving.offer(1, 0.5)
    saving.look(wait=True)
    disk.full = True
    saving.offer(2, 0.75)
    saving.look(wait=True)
    assert saving.best_accuracy == 0.5
    disk.full = False
    saving.offer(3, 0.4)
    saving.offer(4, 0.6)
    saving.look(wait=True)
    assert saving.best_accuracy == 0.6
    assert steps(tmp_path) == [1, 4]
    assert saving.store.best.samefile(tmp_path / sorted(p.name for p in tmp_path.glob("step_*"))[1])


def test_a_step_is_written_once_unless_it_is_the_best(saving: Saving) -> None:
    written: list[bool] = []
    real = saving.store.save

    def save(state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        written.append(best)
        return real(state, step, best=best)

    saving.store.save = save  # type: ignore[method-assign]
    saving.start(4)
    saving.start(4)
    saving.offer(4, 0.5)
    saving.ensure_saved(4)
    assert written == [False, True]


def test_settling_raises_where_it_cannot_be_written(saving: Saving, said: list[str]) -> None:
    Disk(saving).full = True
    with pytest.raises(CheckpointError, match="disk is full"):
        saving.ensure_saved(3)
    assert said == []  # an error, not a warning


def test_before_the_first_step_there_is_something_to_resume(saving: Saving, tmp_path: Path) -> None:
    saving.ensure_saved(0)
    assert steps(tmp_path) == [0]


class Pair(World):
    """Two ranks in this process; what the other says is set by the test."""

    others: list[Any]

    def gather(self, value: Any) -> list[Any]:
        other = self.others.pop(0) if isinstance(value, str | None) and self.others else value
        return [value, other]

    def first(self, value: Any) -> Any:
        return value


def test_a_failure_is_heard_of_before_the_next_checkpoint(tmp_path: Path, said: list[str]) -> None:
    """By rank 0, which has written its own part; and by a rank that is not asked before."""
    settings = CheckpointSection(every_steps=4, every_minutes=None)
    main, other = Pair(0, 2), Pair(1, 2)
    object.__setattr__(main, "others", [None, "no space."])
    object.__setattr__(other, "others", [])
    (tmp_path / "other").mkdir()
    saving = Saving(settings, tmp_path, main, lambda: {"step": 0}, said.append)
    saving.start(4)
    saving.look(wait=True)
    assert not saving.untold and not saving.due(7)
    saving.hear()
    assert said == ["warning: rank 1: no space. Training goes on."]
    assert not saving.due(7) and saving.due(8), "it is not made; the next is due as ever"
    saving.close()

    saving = Saving(settings, tmp_path / "other", other, lambda: {"step": 0}, said.append)
    Disk(saving).full = True
    saving.start(4)
    saving.look(wait=True)
    assert saving.untold and len(said) == 1
    saving.hear()
    assert not saving.untold
    saving.close()


def test_a_failure_of_another_rank_is_told_and_counts_here(tmp_path: Path, said: list[str]) -> None:
    world = Pair(0, 2)
    object.__setattr__(world, "others", [None, "could not write its part.", None])
    settings = CheckpointSection(every_steps=4, every_minutes=None)
    saving = Saving(settings, tmp_path, world, lambda: {"step": 0}, said.append)
    saving.start(4)
    assert said == []
    saving.start(8)
    assert said == ["warning: rank 1: could not write its part. Training goes on."]
    assert saving.warnings == ["rank 1: could not write its part."]
    saving.ensure_saved(8)
    assert steps(tmp_path) == [4, 8] and len(said) == 1
    saving.close()

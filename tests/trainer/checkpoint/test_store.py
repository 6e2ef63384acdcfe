"""A checkpoint is whole or absent, and reading one never runs code."""

import errno
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conadv import _files as files
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.file import save_file
from conadv.trainer.checkpoint.store import CheckpointStore, load_checkpoint
from conadv.trainer.distributed import World

STATE = {"step": 3, "model": {"weight": torch.arange(4000.0)}, "nothing": None}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_file(path, STATE)
    back = load_checkpoint(path)
    assert back["step"] == 3 and back["nothing"] is None
    assert torch.equal(back["model"]["weight"], STATE["model"]["weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused_with_advice(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save_file(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        CheckpointError, match=r"truncated, damaged.*newest checkpoint of the run that is in order"
    ):
        load_checkpoint(path)


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_file(path, STATE)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(4000.0).numpy().tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum|CRC"):
        load_checkpoint(path)


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    """Also in the directory of the zip file, where a flip can exchange two tensors."""
    path = tmp_path / "a.pt"
    state = {"step": 3, "a": torch.arange(9.0), "b": torch.ones(9), "name": "x", "z": [None, 1.5]}
    save_file(path, state)
    whole = path.read_bytes()
    random, found = np.random.default_rng(0), 0
    for position in sorted({*random.integers(0, len(whole), 150), *range(-24, 0)}):
        content = bytearray(whole)
        content[position] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            back = load_checkpoint(path)
        except CheckpointError:
            found += 1
            continue
        assert all(torch.equal(back[name], state[name]) for name in "ab")
        assert all(back[name] == state[name] for name in ("step", "name", "z"))
    assert found > 150


def test_damage_of_any_kind_falls_back(tmp_path: Path) -> None:
    """Checkpoints of earlier versions have no checksum behind them."""
    store = CheckpointStore(tmp_path, keep=2)
    old = {"format": "conadv-checkpoint", "version": 1, "step": 1, "a": torch.arange(9.0)}
    torch.save(old, store.path(1))
    torch.save({**old, "step": 2}, store.path(2))
    assert load_checkpoint(store.path(2))["step"] == 2
    whole = store.path(2).read_bytes()
    random = np.random.default_rng(1)
    for position in random.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[position] ^= 0xFF
        store.path(2).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.load_newest()
        assert found is not None and found["step"] in (1, 2)


def test_permission_does_not_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save({"step": 1}, 1)
    newest = store.save({"step": 2}, 2)
    real = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path == newest:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="may not be read: Permission denied"):
        store.load_newest()


class Two(World):
    """A world of two ranks in which the other one agrees with this one."""

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def first(self, value: Any) -> Any:
        return value

    spread = first


def own(ranks: int, read: Any) -> dict[str, Any]:
    return {"parts": [read(rank) for rank in range(ranks)]}


def test_a_first_checkpoint_that_was_never_finished_is_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, world=Two(0, 2))
    store.save({"step": 7, "own": {}}, 7)
    with pytest.warns(UserWarning, match="was not finished: the part of rank 1 of 2 is missing"):
        assert store.load_newest(own) is None
    CheckpointStore(tmp_path, keep=2, world=Two(1, 2)).save({"step": 7, "own": {}}, 7)
    found = store.load_newest(own)
    assert found is not None and len(found["own"]["parts"]) == 2


def test_parts_that_never_come_do_not_pile_up(tmp_path: Path) -> None:
    """And what is finished stays, also that of another number of ranks."""
    for rank in range(3):
        CheckpointStore(tmp_path, keep=1, world=Two(rank, 3)).save({"step": 1}, 1)
    store = CheckpointStore(tmp_path, keep=1, world=Two(0, 3))
    for step in range(2, 8):
        CheckpointStore(tmp_path, keep=1, world=Two(1, 3)).save({"step": step}, step)
        store.save({"step": step}, step)
    steps = [int(path.stem[5:]) for path in store.steps()]
    assert steps[0] == 7 and steps[-1] == 1 and len(steps) <= 5


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")


class _Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_would_execute_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "executed"
    torch.save({"format": "conadv-checkpoint", "version": 1, "x": _Malicious(mark)}, path)
    with pytest.raises(CheckpointError, match="refused and nothing was run"):
        load_checkpoint(path)
    assert not mark.exists()


def test_a_plain_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(_Malicious(mark)))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], {"format": "other"}])
def test_foreign_checkpoint(tmp_path: Path, foreign: object) -> None:
    path = tmp_path / "a.pt"
    torch.save(foreign, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of conadv"):
        load_checkpoint(path)


def test_other_version_names_both(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": "conadv-checkpoint", "version": 99}, path)
    with pytest.raises(CheckpointError, match=r"version 99.*version 1"):
        load_checkpoint(path)


def test_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(STATE, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*Earlier checkpoints are untouched"):
        store.save({"step": 9}, 2)
    monkeypatch.undo()
    found = store.load_newest()
    assert found is not None and found["step"] == 3
    assert not list(tmp_path.glob("*.partial"))


_LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.file import load_file, save_file
path = Path(sys.argv[1])
save_file(path, {"step": 1, "x": torch.zeros(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_file(path, {"step": 2, "x": torch.zeros(1_000_000)})
except CheckpointError as error:
    print("refused:", error)
print("kept", load_file(path)["step"], sorted(p.name for p in path.parent.iterdir()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE and SIGXFSZ")
def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "a.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "refused: could not write" in done.stdout
    assert "kept 1 ['a.pt']" in done.stdout


def test_store_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 12):
        store.save({"step": step}, step, best=step == 2)
    assert [p.name for p in store.steps()] == ["step_00000012.pt", "step_00000003.pt"]
    assert load_checkpoint(store.last)["step"] == 12
    assert load_checkpoint(store.best)["step"] == 2


def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save({"step": 1}, 1)
    newest = store.save({"step": 2}, 2)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="Trying the checkpoint before it"):
        found = store.load_newest()
    assert found is not None and found["step"] == 1


def test_nothing_to_load(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path, keep=1).load_newest() is None


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save({"step": 1}, 1).write_bytes(b"PK")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError):
        store.load_newest()


def sharded(step: int, rank: int) -> dict[str, Any]:
    """A rank's file of a state with one tensor of two rows, each on a rank of two."""
    rows: dict[str, torch.Tensor] = {"w": torch.full((1, 3), float(10 * step + rank))}
    cut = {"rows of": "w", "shape": [2, 3], "dtype": torch.float32}
    shared = {"trainer": {"model": {"w": cut}}} if rank == 0 else {}
    return {"step": step, "own": {}, "rows": rows, **shared}


def ranks_of_two(folder: Path, keep: int = 1, attempt: str = "a") -> list[CheckpointStore]:
    return [CheckpointStore(folder, keep, Two(rank, 2), attempt) for rank in (0, 1)]


def weights(state: dict[str, Any]) -> list[float]:
    return [float(row[0]) for row in state["trainer"]["model"]["w"]]


def test_the_best_keeps_its_parts(tmp_path: Path) -> None:
    stores = ranks_of_two(tmp_path)
    for step, best in ((1, True), (2, False), (3, True), (4, False)):
        for rank, store in enumerate(stores):
            store.save(sharded(step, rank), step, best=best)
        stores[0].name_best()
        expected = 1 if step < 3 else 3
        assert weights(load_checkpoint(stores[0].best)) == [10 * expected, 10 * expected + 1]
    stores[0].save(sharded(5, 0), 5, best=True)  # killed before rank 1 has written
    assert weights(load_checkpoint(stores[0].best)) == [30, 31]
    with pytest.warns(UserWarning, match="step_00000005.pt was not finished"):
        found = CheckpointStore(tmp_path, 1).load_newest()
    assert found is not None and weights(found) == [40, 41]
    kept = sorted(path.name for path in tmp_path.glob("*rank*"))
    assert kept == ["best_00000003.rank_1_of_2.pt", "step_00000004.rank_1_of_2.pt"]


def test_a_best_that_nobody_had_named_yet_is_named_when_the_run_goes_on(tmp_path: Path) -> None:
    stores = ranks_of_two(tmp_path)
    for rank, store in enumerate(stores):
        store.save(sharded(1, rank), 1, best=True)
    assert not stores[0].best.exists()  # rank 1 was the last, and the launch ended
    again = ranks_of_two(tmp_path, attempt="b")[0]
    again.go_on(again.load_newest())
    assert weights(load_checkpoint(again.best)) == [10, 11]


def test_parts_of_two_launches_are_not_mixed(tmp_path: Path) -> None:
    first, second = ranks_of_two(tmp_path), ranks_of_two(tmp_path, attempt="b")
    for rank in (0, 1):
        first[rank].save(sharded(1, rank), 1)
    first[1].save(sharded(2, 1), 2)  # and rank 0 was killed
    found = second[0].load_newest()
    second[0].go_on(found)
    assert found is not None and weights(found) == [10, 11]
    second[0].save(sharded(2, 0), 2)
    with pytest.warns(UserWarning, match="step_00000002.pt was not finished"):
        found = second[0].load_newest()
    assert found is not None and weights(found) == [10, 11]
    first[1].save(sharded(2, 1), 2)  # an orphan of the first launch
    with pytest.warns(UserWarning, match="step_00000002.pt was not finished"):
        found = second[0].load_newest()
    assert found is not None and weights(found) == [10, 11]


def test_one_process_goes_on_with_what_two_wrote(tmp_path: Path) -> None:
    for rank, store in enumerate(ranks_of_two(tmp_path)):
        store.save({**sharded(1, rank), "own": {"rank": rank}}, 1)
    found = CheckpointStore(tmp_path, 1, attempt="b").load_newest(own)
    assert found is not None and weights(found) == [10, 11]
    assert found["own"] == {"parts": [{"rank": 0}, {"rank": 1}]}


def test_a_damaged_part_is_damage(tmp_path: Path) -> None:
    stores = ranks_of_two(tmp_path, keep=2)
    for step in (1, 2):
        for rank, store in enumerate(stores):
            path = store.save(sharded(step, rank), step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000002\.rank_1_of_2\.pt is truncated"):
        load_checkpoint(stores[0].path(2))
    with pytest.warns(UserWarning, match="Trying the checkpoint before it"):
        found = stores[0].load_newest()
    assert found is not None and weights(found) == [10, 11]

"""A checkpoint is whole or absent, and reading one never runs code."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conadv import _files as files
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.store import (
    CheckpointStore,
    load_checkpoint,
    save_checkpoint,
)

STATE = {"step": 3, "model": {"weight": torch.arange(4000.0)}, "nothing": None}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    back = load_checkpoint(path)
    assert back["step"] == 3 and back["nothing"] is None
    assert torch.equal(back["model"]["weight"], STATE["model"]["weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused_with_advice(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"truncated, damaged.*Delete it and resume"):
        load_checkpoint(path)


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(4000.0).numpy().tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum|CRC"):
        load_checkpoint(path)


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
from conadv.trainer.checkpoint.store import save_checkpoint, load_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"step": 1, "x": torch.zeros(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(path, {"step": 2, "x": torch.zeros(1_000_000)})
except CheckpointError as error:
    print("refused:", error)
print("kept", load_checkpoint(path)["step"], sorted(p.name for p in path.parent.iterdir()))
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

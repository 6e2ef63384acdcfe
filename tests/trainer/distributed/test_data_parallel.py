"""What ranks share out and join, without starting any."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conadv.errors import CheckpointError, DistributedError
from conadv.trainer.checkpoint.reshard import redeal
from conadv.trainer.checkpoint.saver import BackgroundWriter, snapshot
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed import World
from conadv.trainer.distributed import batch_norm as module
from conadv.trainer.distributed.batch_norm import JoinedStatistics
from conadv.trainer.distributed.world import local_device

# -- dealing out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_every_micro_batch_has_one_rank(size: int) -> None:
    slots = [World(rank, size).slots(12) for rank in range(size)]
    assert [slot for part in slots for slot in part] == list(range(12))


@pytest.mark.parametrize("size", [5, 7, 8, 24])
def test_a_number_that_does_not_divide_says_which_do(size: int) -> None:
    with pytest.raises(DistributedError, match="numbers of processes are 1, 2, 3, 4, 6, 12"):
        World(0, size).slots(12)


def test_many_divisors_are_shortened() -> None:
    with pytest.raises(DistributedError, match=r"1, 2, 3, .*, \.\.\., 5040;"):
        World(0, 11).slots(5040)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    second = World(1, 2, local_rank=1, local_size=2)
    assert local_device("auto", World()) == "auto"
    assert local_device("cpu", second) == "cpu"
    with pytest.raises(DistributedError, match="share one GPU"):
        local_device("cuda:0", second)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device("auto", second) == local_device("cuda", second) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DistributedError, match="which has 1 GPUs: start at most 1"):
        local_device("cuda", second)


def test_errors_of_the_main_rank_reach_the_caller() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        World().on_main(fail)
    assert World().on_main(lambda: 3) == 3


# -- another number of ranks -----------------------------------------------------------------------


def states(schedule: str, ranks: int, micro_steps: int, tau: int = 2) -> list[dict[str, Any]]:
    """What ranks of a run would have saved; a copy is named after its step and micro-batch."""
    own = micro_steps // ranks
    found = []
    for rank in range(ranks):
        slots = range(rank * own, (rank + 1) * own)
        if schedule == "lookahead":
            pending: list[Any] = [f"{step}:{slot}" for step in range(tau) for slot in slots]
        else:
            pending = [f"{slots[-1]}"]
        state = {"pending": pending}
        found.append({"adversary": {"schedule": schedule, "state": state, "rounds": rank}})
    return found


@pytest.mark.parametrize("before", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 12])
def test_lookahead_loses_nothing(before: int, after: int) -> None:
    saved, expected = states("lookahead", before, 12), states("lookahead", after, 12)
    for rank in range(after):
        found = redeal(before, saved.__getitem__, World(rank, after), 12, queued=True)
        assert found["adversary"]["state"] == expected[rank]["adversary"]["state"]


@pytest.mark.parametrize("before", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 12])
def test_recycled_copies_stay_with_their_micro_batch(before: int, after: int) -> None:
    saved = states("recycled", before, 12)
    for rank in range(after):
        found = redeal(before, saved.__getitem__, World(rank, after), 12)
        ends = [slot for slot in World(rank, after).slots(12) if (slot + 1) % (12 // before) == 0]
        assert found["adversary"]["state"]["pending"] == [str(slot) for slot in ends[-1:]]


def test_nothing_pending_is_nothing_to_deal() -> None:
    saved = [{"adversary": {"schedule": "vanilla", "state": {}}} for _ in range(2)]
    for rank in range(4):
        found = redeal(2, saved.__getitem__, World(rank, 4), 4)
        assert found["adversary"]["state"] == {}


# -- running statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [[3, 3], [1, 4, 0], [5], [2, 0, 0, 1]])
def test_joined_statistics_are_those_of_one_device(
    shares: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank sees some micro-batches; joined, it is as if one had seen all in turn."""
    torch.manual_seed(1)
    size = len(shares)
    batches = iter(torch.randn(sum(shares), 8, 3).unbind())
    parts = [[next(batches) for _ in range(share)] for share in shares]

    def network() -> nn.Module:
        torch.manual_seed(2)
        layers = [nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3)]
        return nn.Sequential(*layers).double()

    one = network()
    for part in parts:
        for batch in part:
            one(batch.double())
    models = [network() for _ in shares]
    joined = [JoinedStatistics(m, rank, size) for rank, m in enumerate(models)]
    for statistics, model, part in zip(joined, models, parts, strict=True):
        statistics.begin()
        for batch in part:
            model(batch.double())
    updates = torch.stack([statistics.updates() for statistics in joined])
    assert updates.tolist() == [[share, share] for share in shares]

    # An all-reduce among objects of one process: the first calls hand in, the second take out.
    handed: list[torch.Tensor] = []
    monkeypatch.setattr(module.dist, "all_reduce", lambda flat: handed.append(flat.clone()))
    before = [[b.clone() for b in model.buffers()] for model in models]
    for statistics in joined:
        statistics.join(updates)
    for model, buffers in zip(models, before, strict=True):
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    total = torch.stack(handed).sum(0)
    monkeypatch.setattr(module.dist, "all_reduce", lambda flat: flat.copy_(total))
    for statistics, model in zip(joined, models, strict=True):
        statistics.join(updates)
        for name, buffer in one.named_buffers():
            found = dict(model.named_buffers())[name]
            torch.testing.assert_close(found, buffer, rtol=1e-5, atol=1e-6)


def test_undone_statistics_are_those_of_the_beginning() -> None:
    model = nn.BatchNorm1d(3)
    model(torch.randn(8, 3))
    statistics = JoinedStatistics(model, 0, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    statistics.begin()
    model(torch.randn(8, 3))
    assert statistics.updates().tolist() == [1]
    statistics.undo()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert statistics.updates().tolist() == [0]


# -- checkpoints of several ranks ------------------------------------------------------------------


def write(folder: Path, step: int, ranks: int, leave_out: tuple[int, ...] = ()) -> None:
    for rank in range(ranks):
        if rank not in leave_out:
            state = {"step": step, "own": {"rank": rank}}
            CheckpointStore(folder, 2, World(rank, ranks)).save(state, step)


def read_all(ranks: int, read: Any) -> dict[str, Any]:
    return {"read": [read(rank)["rank"] for rank in range(ranks)]}


def test_every_rank_finds_its_own(tmp_path: Path) -> None:
    write(tmp_path, 4, ranks=3)
    state = CheckpointStore(tmp_path, 2).load_newest(read_all)
    assert state is not None and state["own"]["read"] == [0, 1, 2] and state["ranks"] == 3


@pytest.mark.parametrize("missing", [1, 2])
def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path, missing: int) -> None:
    write(tmp_path, 4, ranks=3)
    write(tmp_path, 8, ranks=3, leave_out=(missing,))
    with pytest.warns(UserWarning, match=f"the part of rank {missing} of 3 is missing"):
        state = CheckpointStore(tmp_path, 2).load_newest(read_all)
    assert state is not None and state["step"] == 4


def test_complete_ones_are_kept_until_newer_ones_are_complete(tmp_path: Path) -> None:
    for step in (2, 4):
        write(tmp_path, step, ranks=2)
    for step in (6, 8, 10):
        write(tmp_path, step, ranks=2, leave_out=(1,))
    store = CheckpointStore(tmp_path, 2, World(0, 2))
    assert {2, 4} <= {int(path.stem.split("_")[1]) for path in store.steps()}
    for step in (12, 14):
        write(tmp_path, step, ranks=2)
    write(tmp_path, 16, ranks=2)
    left = sorted(path.name for path in tmp_path.glob("step_*"))
    assert [name for name in left if "00000002" in name or "00000004" in name] == []
    assert "step_00000014.rank_1_of_2.pt" in left


# -- writing beside training -----------------------------------------------------------------------


def test_a_snapshot_does_not_follow_its_source() -> None:
    weight = torch.zeros(3, requires_grad=True)
    copy = snapshot({"a": [weight, 2, None], "b": (weight,)})
    with torch.no_grad():
        weight += 1
    assert copy["a"][0].tolist() == [0, 0, 0] and copy["a"][1:] == [2, None]
    assert isinstance(copy["b"], tuple) and not copy["b"][0].requires_grad


def test_training_goes_on_while_a_checkpoint_is_written() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), []

    def slow() -> None:
        gate.wait(10)
        done.append(True)

    writer.start(slow)
    assert not writer.finished() and not done
    gate.set()
    assert writer.finished(wait=True) and done
    assert not writer.finished(wait=True)  # told once
    writer.close()


@pytest.mark.parametrize("error", [CheckpointError("disk full"), MemoryError("no room")])
def test_a_failed_write_is_told_later(error: Exception) -> None:
    writer = BackgroundWriter()

    def fail() -> None:
        raise error

    writer.start(fail)
    with pytest.raises(CheckpointError, match=str(error)):
        writer.finished(wait=True)
    writer.start(lambda: None)
    assert writer.finished(wait=True)
    writer.close()

"""Tensors that lie in parts: what a rank writes of them, and what any number of ranks reads.

The ranks are those of a process group in which nothing arrives, so that each of them can be played
by this process, and whatever wanted to communicate would find nothing.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from conadv.trainer.checkpoint.rows import join_rows, take_rows

SHAPES = {"even": (8, 3), "uneven": (10, 2, 2), "few": (3,), "one": (1, 5), "none": (0, 4)}
WHOLE = {
    name: torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    for name, shape in SHAPES.items()
}


@contextlib.contextmanager
def rank_of(rank: int, size: int) -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield init_device_mesh("cpu", (size,))
    finally:
        dist.destroy_process_group()


def spread(mesh: DeviceMesh) -> dict[str, Any]:
    """A state as a trainer's, of which a rank holds its rows."""
    cut = {
        name: distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
        for name, value in WHOLE.items()
    }
    return {"model": cut, "list": [cut["even"] + 1, None, 3], "mean": torch.tensor(2.0)}


def written(size: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """What rank 0 has in common with all, and each rank's rows."""
    outline, parts = None, []
    for rank in range(size):
        rows: dict[str, torch.Tensor] = {}
        with rank_of(rank, size) as mesh:
            state = spread(mesh)
            with CommDebugMode() as communication:
                found = take_rows(state, rows)
            assert communication.get_total_counts() == 0
        assert outline is None or outline.keys() == found.keys()
        outline = outline or found
        parts.append({name: value.clone() for name, value in rows.items()})
    return outline, parts


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_has_its_rows_and_together_they_are_the_tensors(size: int) -> None:
    outline, parts = written(size)
    for name, value in WHOLE.items():
        assert torch.equal(torch.cat([part[f"/model/{name}"] for part in parts]), value)
        most = max(len(part[f"/model/{name}"]) for part in parts)
        assert most == -(-len(value) // size)
    assert outline["mean"] == 2 and not isinstance(outline["model"]["even"], torch.Tensor)


@pytest.mark.parametrize(("before", "now"), [(1, 3), (2, 2), (3, 2), (4, 1), (2, 5)])
def test_any_number_of_ranks_reads_what_any_number_wrote(before: int, now: int) -> None:
    outline, parts = written(before)
    for rank in range(now):
        read: list[int] = []

        def of(part: int, read: list[int] = read) -> dict[str, torch.Tensor]:
            read.append(part)
            return parts[part]

        with rank_of(rank, now) as mesh, CommDebugMode() as communication:
            found = join_rows(outline, before, of, mesh)
            expected = spread(mesh)
            for name, value in expected["model"].items():
                local = found["model"][name]
                assert isinstance(local, DTensor) and local.shape == value.shape
                assert local.placements == value.placements
                assert torch.equal(local.to_local(), value.to_local()), name
            assert communication.get_total_counts() == 0
        assert found["list"][1:] == [None, 3] and found["mean"] == 2
        assert read == sorted(set(read)) and (before != now or read == [rank])


def test_one_process_gets_whole_tensors() -> None:
    outline, parts = written(4)
    found = join_rows(outline, 4, lambda rank: parts[rank])
    for name, value in WHOLE.items():
        assert torch.equal(found["model"][name], value)
    assert torch.equal(found["list"][0], WHOLE["even"] + 1)


def test_rows_that_do_not_fit_are_damage() -> None:
    outline, parts = written(2)
    other = [parts[0], {**parts[1], "/model/uneven": torch.zeros(4, 2, 2)}]
    with pytest.raises(ValueError, match="rank 1 has other rows of /model/uneven"):
        join_rows(outline, 2, lambda rank: other[rank])
    del other[1]["/model/uneven"]
    with pytest.raises(KeyError):
        join_rows(outline, 2, lambda rank: other[rank])


def test_what_is_the_same_everywhere_stays_with_the_rest() -> None:
    with rank_of(1, 2) as mesh:
        same = distribute_tensor(WHOLE["even"], mesh, [Replicate()], src_data_rank=None)
        rows: dict[str, torch.Tensor] = {}
        found = take_rows({"scale": same}, rows)
    assert rows == {} and torch.equal(found["scale"], WHOLE["even"])

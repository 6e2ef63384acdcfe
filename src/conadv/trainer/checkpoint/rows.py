"""Tensors of which every rank holds some rows: each writes its own, any number of ranks reads them.

`torch.distributed.fsdp.fully_shard` cuts a tensor of n rows into pieces of ceil(n / ranks) rows,
one after the other; the last ranks may have fewer, or none. So what a rank holds follows from the
tensor's shape, and nobody has to keep a list.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conadv.optim.sharded import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_NAME = "rows of"


@dataclass(frozen=True)
class _Cut:
    """A tensor that lies in parts: what stands for it in the main file."""

    name: str
    """Under which every rank keeps its rows."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: torch.dtype


def take_rows(value: Any, rows: dict[str, Tensor], name: str = "") -> Any:
    """Take this rank's part out of every DTensor in nested dicts, lists and tuples.

    Nothing is communicated and nothing copied, but for DTensors that are cut in another way than
    over their first dimension, which are gathered: then all ranks have to call it together.

    Args:
        value: of dicts, lists, tuples, tensors and plain values.
        rows: gets this rank's rows, by the place of the tensor in ``value``.
        name: of that place.

    Returns:
        The same structure, in which plain values stand for these tensors.
    """
    if is_dtensor(value):
        if [placement.is_shard(0) for placement in value.placements] != [True]:
            return value.full_tensor().detach()
        rows[name] = value.to_local().detach()
        return {_NAME: name, "shape": list(value.shape), "dtype": value.dtype}
    if isinstance(value, Mapping):
        return {key: take_rows(item, rows, f"{name}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(item, rows, f"{name}/{i}") for i, item in enumerate(value))
    return value


def join_rows(
    value: Any,
    ranks: int,
    read: Callable[[int], Mapping[str, Tensor]],
    mesh: "DeviceMesh | None" = None,
) -> Any:
    """Put the tensors back that `take_rows` took apart, on any number of ranks.

    One rank's rows are in memory at a time beside those that are asked for, and no rank's are read
    of which none are. Nothing is communicated.

    Args:
        value: what `take_rows` returned.
        ranks: how many there were.
        read: ``read(rank)`` gives the rows of one of them.
        mesh: the ranks that are to hold them now; None makes whole tensors.

    Raises:
        KeyError: a rank's rows of a tensor are missing.
        ValueError: they have another shape or dtype.
    """
    cuts = list(_cuts(value))
    part, parts = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    wanted = {cut.name: _held(cut.shape[0], part, parts) for cut in cuts}
    found = {
        cut.name: torch.empty(len(wanted[cut.name]), *cut.shape[1:], dtype=cut.dtype)
        for cut in cuts
    }
    for rank in range(ranks):
        overlaps = [
            (cut, held, both)
            for cut in cuts
            if (both := _both(held := _held(cut.shape[0], rank, ranks), wanted[cut.name]))
        ]
        there = read(rank) if overlaps else {}
        for cut, held, both in overlaps:
            rows = there[cut.name]
            if rows.shape != (len(held), *cut.shape[1:]) or rows.dtype != cut.dtype:
                raise ValueError(f"rank {rank} has other rows of {cut.name} than it should")
            own = wanted[cut.name]
            found[cut.name][both.start - own.start : both.stop - own.start] = rows[
                both.start - held.start : both.stop - held.start
            ]
    whole = {
        cut.name: found[cut.name] if mesh is None else _spread(found[cut.name], cut.shape, mesh)
        for cut in cuts
    }
    return _put_back(value, whole) if cuts else value


def _held(count: int, rank: int, ranks: int) -> range:
    """Which of so many rows a rank holds."""
    most = -(-count // ranks)
    return range(min(rank * most, count), min((rank + 1) * most, count))


def _both(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def _spread(rows: Tensor, shape: tuple[int, ...], mesh: "DeviceMesh") -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    whole = torch.empty(shape, device="meta")
    local = rows.to(mesh.device_type)
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _cuts(value: Any) -> Iterator[_Cut]:
    if isinstance(value, dict) and _NAME in value:
        yield _Cut(value[_NAME], tuple(value["shape"]), value["dtype"])
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _cuts(item)


def _put_back(value: Any, whole: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _NAME in value:
            return whole[value[_NAME]]
        return {key: _put_back(item, whole) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(item, whole) for item in value)
    return value

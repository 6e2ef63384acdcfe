"""An order computed place by place: a permutation, even, and of no more cost than a step."""

import numpy as np
import pytest
import torch

from conadv.trainer.data import sampler
from conadv.trainer.data.keyed_order import keyed_order
from conadv.trainer.data.sampler import sample_indices


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 16, 17, 63, 1000, 4096, 70_001])
def test_every_image_once(size: int) -> None:
    for seed, epoch in ((0, 0), (-5, 3), (2**64 - 1, 10**6)):
        order = keyed_order(seed, epoch, size, 0, size)
        assert (np.sort(order) == np.arange(size)).all()
        cut = size // 3
        parts = [keyed_order(seed, epoch, size, *p) for p in ((0, cut), (cut, size))]
        assert (np.concatenate(parts) == order).all()


def test_orders_differ_and_are_even() -> None:
    size, orders = 20, 4000
    counts = np.zeros((size, size))
    for epoch in range(orders):
        counts[np.arange(size), keyed_order(1, epoch, size, 0, size)] += 1
    expected = orders / size
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5
    assert len({tuple(keyed_order(s, e, 20, 0, 20)) for s in range(9) for e in range(9)}) == 81


def test_neighbours_are_strangers() -> None:
    """No order left between places that follow one another."""
    size = 10**9
    order = keyed_order(0, 0, size, 0, 100_000) / size
    for values in (order, np.diff(order) % 1):
        bins = np.histogram(values, 50, (0, 1))[0]
        assert ((bins - 2000) ** 2 / 2000).sum() < 49 + 5 * 98**0.5
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.015


def test_a_step_costs_the_same_whatever_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers sent through the network: under four per image on average, at any size."""
    seen: list[int] = []
    real = sampler.keyed_order.__globals__["_feistel"]

    def counted(numbers, half, keys):
        seen.append(len(numbers))
        return real(numbers, half, keys)

    monkeypatch.setitem(sampler.keyed_order.__globals__, "_feistel", counted)
    for size in (2**26, 10**9, 2**40 + 1, 10**15):
        seen.clear()
        found = sample_indices(3, 7, 4096, size)
        assert sum(seen) < 4.5 * 4096
        assert found.unique().numel() == 4096 and 0 <= int(found.min()) < int(found.max()) < size


def test_small_data_sets_keep_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And beyond, the same rules about ends of epochs hold."""
    assert sample_indices(0, 0, 8, 20).tolist() == [0, 2, 11, 17, 9, 1, 8, 13]
    monkeypatch.setattr(sampler, "WHOLE", 10)
    order = [torch.from_numpy(keyed_order(0, epoch, 20, 0, 20)) for epoch in range(3)]
    wrapped = torch.cat([sample_indices(0, step, 8, 20) for step in range(5)])
    assert wrapped.equal(torch.cat(order[:2]))
    kept = [sample_indices(0, step, 8, 20, "keep") for step in range(6)]
    assert [len(step) for step in kept] == [8, 8, 4, 8, 8, 4] and torch.cat(kept[3:]).equal(
        order[1]
    )
    dropped = [sample_indices(0, step, 8, 20, "drop") for step in range(4)]
    assert torch.cat(dropped[2:]).equal(order[1][:16])

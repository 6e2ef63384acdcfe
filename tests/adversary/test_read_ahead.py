"""Lookahead in loops that prefetch, leave batches out, break off, or refill their buffers."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import conadv
from support.loops import ATTACK, assert_same_state, batches, cross_entropy, network, run, sgd


def session(tau: int = 1, lr: float = 0.1) -> tuple[Any, conadv.Adversary, Any]:
    model = network()
    return model, conadv.Adversary(model, ATTACK, conadv.Lookahead(tau)), sgd(model, lr)


def train(adversary: conadv.Adversary, optimizer: Any, images: Any, labels: Any) -> bool:
    """One round; whether it had copies."""
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    optimizer.step()
    optimizer.zero_grad()
    return adversary.diagnostics.adversarial_loss is not None


def prefetched(loader: Any, ahead: int) -> Iterator[Any]:
    """As a consumer does that moves batches to a device before they are needed."""
    queue: deque[Any] = deque()
    for batch in loader:
        queue.append(tuple(tensor.clone() for tensor in batch))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


@pytest.mark.parametrize("tau", [1, 2])
@pytest.mark.parametrize("ahead", [1, 3])
def test_a_consumer_may_prefetch(tau: int, ahead: int) -> None:
    expected, adversary, optimizer = session(tau)
    run(adversary, optimizer, batches(6))
    model, adversary, optimizer = session(tau)
    for images, labels in prefetched(adversary.batches(batches(6)), ahead):
        train(adversary, optimizer, images, labels)
    assert_same_state(model, expected)


@pytest.mark.parametrize("tau", [1, 2])
def test_a_loop_may_leave_batches_out(tau: int) -> None:
    """What was made for a batch without a round lands on no other."""
    _, adversary, optimizer = session(tau, lr=0.01)
    adversary.track_agreement = True
    for number, (images, labels) in enumerate(adversary.batches(batches(8))):
        if number == 3:
            continue
        had_copies = train(adversary, optimizer, images, labels)
        assert had_copies == (number >= tau and number - tau != 3)
        if had_copies:
            assert adversary.diagnostics.agreement > 0.5


def test_the_next_epoch_may_have_another_order() -> None:
    """Nothing of a loop that was broken off reaches the batches of another one."""
    _, adversary, optimizer = session()
    data, had_copies = batches(4), []
    for epoch in range(2):
        order = data if epoch == 0 else data[::-1]
        for number, (images, labels) in enumerate(adversary.batches(order)):
            had_copies.append(train(adversary, optimizer, images, labels))
            if epoch == 0 and number == 1:
                break
    assert had_copies == [False, True, False, True, True, True]


def test_a_loop_that_goes_on_where_it_was_left_loses_nothing() -> None:
    _, adversary, optimizer = session()
    data = batches(6)
    for images, labels in itertools.islice(adversary.batches(data), 3):
        train(adversary, optimizer, images, labels)
    rest = [train(adversary, optimizer, x, y) for x, y in adversary.batches(data[3:])]
    assert rest == [True, True, True]


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_loader_may_fill_its_buffers_anew(tau: int, slots: int) -> None:
    def refilling() -> Iterator[Any]:
        buffers = [tuple(torch.empty_like(t) for t in batches(1)[0]) for _ in range(slots)]
        for number, batch in enumerate(batches(6)):
            for buffer, tensor in zip(buffers[number % slots], batch, strict=True):
                buffer.copy_(tensor)
            yield buffers[number % slots]

    expected, adversary, optimizer = session(tau)
    run(adversary, optimizer, batches(6))
    model, adversary, optimizer = session(tau)
    run(adversary, optimizer, refilling())
    assert_same_state(model, expected)


def test_another_batch_than_peek_was_shown_is_said() -> None:
    _, adversary, optimizer = session()
    data = batches(4)
    adversary.peek(*data[1])
    train(adversary, optimizer, *data[0])
    adversary.peek(*data[3])
    with pytest.warns(RuntimeWarning, match="Other images were attacked for this round"):
        assert not train(adversary, optimizer, *data[2])
    adversary.peek(*data[0])
    assert train(adversary, optimizer, *data[3])


def test_a_continued_run_with_another_order_is_told() -> None:
    _, adversary, optimizer = session()
    data = batches(4)
    for images, labels in itertools.islice(adversary.batches(data), 2):
        train(adversary, optimizer, images, labels)
    _, other, second = session()
    other.load_state_dict(adversary.state_dict())
    with pytest.warns(RuntimeWarning, match="after a restart"):
        assert not train(other, second, *data[3])


@pytest.mark.parametrize("change", ["flip", "shuffle"])
def test_images_that_are_changed_on_the_way_are_refused(change: str) -> None:
    _, adversary, _ = session()
    for images, labels in adversary.batches(batches(3)):
        other = images.flip(-1) if change == "flip" else images[torch.randperm(8)]
        with pytest.raises(RuntimeError, match="no batch that batches"):
            adversary.loss(other, labels, cross_entropy)


class AsFloat(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


@pytest.mark.parametrize("change", [torch.Tensor.clone, torch.Tensor.double, torch.Tensor.bfloat16])
def test_a_copy_or_another_type_is_the_same_batch(change) -> None:
    model = nn.Sequential(AsFloat(), *network())
    adversary, optimizer = conadv.Adversary(model, ATTACK, "lookahead"), sgd(model)
    for number, (images, labels) in enumerate(adversary.batches(batches(3))):
        assert train(adversary, optimizer, change(images), labels) == (number > 0)


def test_an_abandoned_loop_does_not_disturb_a_later_one() -> None:
    _, adversary, optimizer = session()
    first = adversary.batches(batches(3))
    train(adversary, optimizer, *next(first))
    second = adversary.batches(batches(4, seed=9))
    train(adversary, optimizer, *next(second))
    first.close()
    assert train(adversary, optimizer, *next(second))

"""What every schedule must do with every kind of model, image, label and criterion."""

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    SCHEDULES,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def check(adversary, model, losses) -> None:
    """Training happened: finite, downhill on the same few batches, copies where there are some."""
    assert all(torch.tensor(losses).isfinite())
    assert sum(losses[-3:]) < sum(losses[:3])
    assert (adversary.diagnostics.clean_loss is not None) and adversary.images > 0
    if adversary.schedule.name not in ("vanilla",):
        assert adversary.preview is not None
    assert all(p.grad is None for p in model.parameters())


@every_schedule
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_it_learns(make, forward: str) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make(), forward=forward)
    check(adversary, model, run(adversary, sgd(model, 0.05), batches(2) * 6))


@every_schedule
@pytest.mark.parametrize("options", [{"norm": False}, {"statistics": "affine"}, {"group_size": 4}])
def test_other_normalisation(make, options) -> None:
    model = network(**options)
    adversary = conadv.Adversary(model, ATTACK, make())
    check(adversary, model, run(adversary, sgd(model, 0.05), batches(2) * 6))


@every_schedule
def test_layer_norm_split_or_not(make) -> None:
    for split in (False, True):
        model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, CLASSES))
        if split:
            conadv.split_norms(model, layer_norm=True)
        adversary = conadv.Adversary(model, ATTACK, make())
        check(adversary, model, run(adversary, sgd(model, 0.05), batches(2) * 6))


@every_schedule
@pytest.mark.filterwarnings("ignore:The model has 2 batch-norm layers")
def test_batch_norm_that_was_not_split(make) -> None:
    model = network(split=False)
    adversary = conadv.Adversary(model, ATTACK, make())
    check(adversary, model, run(adversary, sgd(model, 0.05), batches(2) * 6))


@every_schedule
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_channels_last_stays_channels_last(make, forward: str) -> None:
    model = network().to(memory_format=torch.channels_last)
    adversary = conadv.Adversary(model, ATTACK, make(), forward=forward)
    seen = []

    def note(module, given) -> None:
        seen.append(given[0].is_contiguous(memory_format=torch.channels_last))

    model[0].register_forward_pre_hook(note)
    data = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches(5)]
    run(adversary, sgd(model), data)
    assert len(seen) >= 5 and all(seen)
    for tensor in pending(adversary):
        if tensor.ndim == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    nchw = network()
    run(conadv.Adversary(nchw, ATTACK, make(), forward=forward), sgd(nchw), batches(5))
    assert_same_state(nchw, model, rtol=1e-3, atol=1e-3)


@every_schedule
def test_soft_labels_equal_to_hard_ones(make) -> None:
    nets = []
    for soft in (False, True):
        model = network()
        data = [
            (x, nn.functional.one_hot(y, CLASSES).float() if soft else y) for x, y in batches(4)
        ]
        run(conadv.Adversary(model, ATTACK, make()), sgd(model, 0.01), data)
        nets.append(model)
    assert_same_state(*nets, rtol=1e-4, atol=1e-4)


@every_schedule
@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(),
        lambda outputs, labels: (outputs - nn.functional.one_hot(labels, CLASSES)).square().mean(),
        lambda outputs, labels: cross_entropy(outputs, labels).reshape(1),
    ],
)
def test_any_criterion(make, criterion) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make())
    check(adversary, model, run(adversary, sgd(model, 0.05), batches(2) * 6, criterion))


@every_schedule
def test_accumulation(make) -> None:
    """Micro-batches with their fractions: the images' mean, whatever the copies."""
    model = network(group_size=4)
    adversary, optimizer = conadv.Adversary(model, ATTACK, make()), sgd(model, 0.05)
    losses, micro = [], [4, 4, 3]
    data = [
        part for x, y in batches(2, size=11) for part in zip(x.split(4), y.split(4), strict=True)
    ]
    for number, (images, labels) in enumerate(adversary.batches(data * 6)):
        size = micro[number % 3]
        assert len(images) == size
        loss = adversary.loss(images, labels, cross_entropy, fraction=size / 11)
        loss.backward()
        adversary.collect()
        losses.append(loss.item())
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    totals = [sum(losses[i : i + 3]) for i in range(0, len(losses), 3)]
    check(adversary, model, totals)
    assert adversary.images == 2 * 11 * 6


@every_schedule
def test_a_batch_that_changes_its_size(make) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make())
    sizes = [8, 3, 8, 2, 5]
    data = [batches(1, size=size, seed=size)[0] for size in sizes]
    run(adversary, sgd(model), data)
    assert adversary.images == sum(sizes)


@every_schedule
def test_a_frozen_first_layer(make) -> None:
    """Images need a gradient even where no weight before the last layer does."""
    model = network()
    for parameter in model[:6].parameters():
        parameter.requires_grad_(False)
    frozen = model[0].weight.clone()
    adversary = conadv.Adversary(model, ATTACK, make())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    run(adversary, optimizer, batches(4))
    assert torch.equal(model[0].weight, frozen)
    if adversary.diagnostics.zero_share is not None:
        assert adversary.diagnostics.zero_share < 0.1


@every_schedule
def test_sequences_without_channels(make) -> None:
    """Embeddings (N, L, D): no mean, no pixel range."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Flatten(), nn.Linear(32, CLASSES))
    attack = conadv.Attack(0.1, norm="l2", pixel_range=None)
    adversary = conadv.Adversary(model, attack, make())
    data = [(torch.randn(8, 4, 6), torch.arange(8) % CLASSES) for _ in range(2)] * 6
    check(adversary, model, run(adversary, sgd(model, 0.05), data))

"""bf16, fp16 with a scaler, and gradients that overflow."""

import pytest
import torch

from conadv.weights import Lookahead, Recycled, Sequential, WeightAdversary, WeightAttack
from support.loops import batches, cross_entropy, network, sgd
from support.weights import ATTACK, SCHEDULES, train

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
DATA = batches(4, size=16)


def run(adversary, optimizer, dtype, scaler=None, data=DATA) -> None:
    for images, labels in adversary.batches(data):
        with torch.autocast("cpu", dtype=dtype):
            loss = adversary.loss(images, labels, cross_entropy)
        (loss if scaler is None else scaler.scale(loss)).backward()
        adversary.collect()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)


@every_schedule
def test_bf16_autocast_trains_close_to_fp32(make) -> None:
    exact, _ = train(make, DATA)
    model = network()
    run(WeightAdversary(model, ATTACK, make()), sgd(model), torch.bfloat16)
    for a, b in zip(exact.parameters(), model.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("make", [Sequential, lambda: Sequential(weight=0.5), Recycled, Lookahead])
def test_fp16_directions_are_those_of_fp32_and_free_of_the_scale(make) -> None:
    model = network()
    exact = WeightAdversary(model, ATTACK, make())
    twin = network()
    half = WeightAdversary(twin, ATTACK, make())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    still = torch.optim.SGD(twin.parameters(), lr=0.0)
    seen: list[list[torch.Tensor]] = [[], []]
    for adversary, found in zip((exact, half), seen, strict=True):
        step = adversary._passes.space.step
        adversary._passes.space.step = lambda c, *a, s=step, f=found: f.append(c) or s(c, *a)
    for images, labels in exact.batches(DATA):
        exact.loss(images, labels, cross_entropy).backward()
        exact.collect()
    run(half, still, torch.float16, scaler)
    assert len(seen[0]) == len(seen[1]) >= 12
    for a, b in zip(*seen, strict=True):
        assert torch.cosine_similarity(a, b.float(), dim=0) > 0.99
        if exact.centred:  # scale and all
            assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.05)


def test_a_gradient_that_overflowed_is_no_direction() -> None:
    model = network()
    adversary = WeightAdversary(model, ATTACK)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=100)
    optimizer, sizes = sgd(model), []
    before = [p.detach().clone() for p in model.parameters()]
    for number in range(40):
        images, labels = DATA[number % 4]
        with torch.autocast("cpu", dtype=torch.float16):
            loss = adversary.loss(images, labels, cross_entropy)
        scaler.scale(loss).backward()
        adversary.collect()
        sizes.append(adversary.diagnostics.images)
        assert torch.isfinite(loss)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if number == 1:
            assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert sizes[0] == sizes[1] == 16, "nothing was kept of the steps that overflowed"
    assert sizes[-1] == 32
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("centred", [False, True])
def test_an_ascent_that_overflowed_moves_nothing(centred: bool) -> None:
    """Neither its own micro-batch, nor the others through their mean."""
    data, attack = DATA[0], WeightAttack(0.05, micro_batch=4, centred=centred)
    adversary = WeightAdversary(network(), attack, "sequential")
    calls = 0

    def overflows_once(outputs, labels):
        nonlocal calls
        calls += 1
        bad = (outputs.detach() * 0).sum().requires_grad_() + (outputs * 0).abs().sum()
        return cross_entropy(outputs, labels) + (bad.sqrt() if calls == 2 else 0)

    seen = []
    step = adversary._passes.space.step
    adversary._passes.space.step = lambda c, *a: seen.append(c) or step(c, *a)
    loss = adversary.loss(*data, overflows_once)
    assert torch.isfinite(loss)
    assert [bool((c != 0).any()) for c in seen] == [True, False, True, True]
    assert all(c.isfinite().all() for c in seen)


def test_a_sequential_ascent_of_many_images_does_not_underflow() -> None:
    """In fp16 the gradient of one image in a mean over many is zero before it is lifted."""
    model = network(norm=False).half()
    adversary = WeightAdversary(model, WeightAttack(0.05), "sequential")
    seen = []
    step = adversary._passes.space.step
    adversary._passes.space.step = lambda c, *a: seen.append(c) or step(c, *a)
    images, labels = batches(1, size=16)[0]

    def tiny(outputs, labels):
        return cross_entropy(outputs.float(), labels) * 1e-7

    adversary.loss(images.half(), labels, tiny).backward()
    adversary.collect()
    assert (seen[0] != 0).float().mean() > 0.5
    assert all(p.dtype == torch.float16 for p in model.parameters())


def test_weights_in_bf16() -> None:
    model = network().bfloat16()
    adversary = WeightAdversary(model, WeightAttack(0.05, micro_batch=4))
    for images, labels in batches(3):
        loss = adversary.loss(images.bfloat16(), labels, cross_entropy)
        loss.backward()
        adversary.collect()
        assert torch.isfinite(loss)
    assert adversary.diagnostics.perturbed_loss is not None

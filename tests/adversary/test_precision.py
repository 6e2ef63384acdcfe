"""Reduced precision: bf16 and fp16 autocast, GradScaler, and gradients that underflow."""

import copy
import warnings

import pytest
import torch

import conadv
from support.loops import (
    ATTACK,
    SCHEDULES,
    STD,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
ATTACKED = ("sequential", "lookahead", "recycled")


def autocast(dtype):
    return torch.autocast("cpu", dtype=dtype)


def train(adversary, optimizer, data, dtype, scaler=None, fraction=1.0, each=None):
    for images, labels in adversary.batches(data):
        with autocast(dtype):
            loss = adversary.loss(images, labels, cross_entropy, fraction=fraction)
        (loss if scaler is None else scaler.scale(loss)).backward()
        adversary.collect()
        if each is not None:
            each()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)


def signs(adversary, origins):
    copies = adversary.preview[1]
    return ((copies - origins[: len(copies)]) * torch.tensor(STD).view(1, 3, 1, 1)).sign()


@every_schedule
def test_bf16_autocast_trains_close_to_fp32(make) -> None:
    nets, data = [network(), network()], batches(5)
    run(conadv.Adversary(nets[0], ATTACK, make()), sgd(nets[0], 0.01), data)
    adversary = conadv.Adversary(nets[1], ATTACK, make())
    train(adversary, sgd(nets[1], 0.01), data, torch.bfloat16)
    assert adversary.diagnostics.outputs.dtype == torch.bfloat16
    if adversary.preview is not None:
        assert adversary.preview[1].dtype == torch.float32, "copies have their images' type"
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("name", ["lookahead", "sequential"])
def test_an_attack_sees_the_precision_of_the_training_pass(name: str) -> None:
    """Lookahead attacks inside collect(), where the caller's autocast block has ended."""
    model, seen = network(), []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    adversary = conadv.Adversary(model, ATTACK, name)
    train(adversary, sgd(model), batches(3), torch.bfloat16)
    assert len(seen) > 4 and set(seen) == {torch.bfloat16}
    seen.clear()
    run(adversary, sgd(model), batches(2))
    assert set(seen) == {torch.float32}


@every_schedule
def test_fp16_with_a_scaler_attacks_as_fp32_does(make) -> None:
    data, shares, found = batches(4, size=16), [], []
    for dtype in (torch.float32, torch.float16):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, make())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype == torch.float16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        seen = []

        def note(adversary=adversary, seen=seen):
            if adversary.diagnostics.zero_share is not None:
                seen.append(adversary.diagnostics.zero_share.item())

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if dtype == torch.float16:
                train(adversary, optimizer, data, dtype, scaler, each=note)
            else:
                run(adversary, optimizer, data, before_step=note)
        shares.append(seen)
        if adversary.schedule.name in ATTACKED:
            index = -1 if adversary.schedule.name != "recycled" else -2
            if adversary.schedule.name != "recycled" or adversary.schedule.refine == 1:
                found.append(signs(adversary, data[index][0]))
    assert shares[1] == pytest.approx(shares[0], abs=0.02)
    if found:
        assert (found[0] == found[1]).float().mean() > 0.95


@every_schedule
def test_steps_that_overflow_are_skipped_and_training_goes_on(make) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    weights, scales = [], []
    for _ in range(10):
        before = copy.deepcopy([p.detach() for p in model.parameters()])
        with warnings.catch_warnings():  # NaN gradients count as zero
            warnings.simplefilter("ignore", RuntimeWarning)
            train(adversary, optimizer, batches(4, size=8), torch.float16, scaler)
        scales.append(scaler.get_scale())
        weights.append(
            any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        )
    assert not weights[0], "every step of the first epoch overflowed and was skipped"
    assert weights[-1] and scales[-1] == scales[-2], "and the scale was found"
    assert all(p.isfinite().all() for p in model.parameters())
    assert adversary.diagnostics.clean_loss.isfinite()
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


def test_copies_of_an_overflow_are_images_in_the_ball() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    images, labels = batches(1)[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    for _ in range(2):
        with autocast(torch.float16):
            loss = adversary.loss(images, labels, cross_entropy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            scaler.scale(loss).backward()
            adversary.collect()
    moved = (adversary.preview[1] - images).abs() * torch.tensor(STD).view(1, 3, 1, 1)
    assert moved.isfinite().all() and moved.max() <= ATTACK.epsilon * 1.001


def test_the_trap_of_a_huge_batch_is_not_silent() -> None:
    """The fraction of a micro-batch in 98,304 images, in fp16, without a scale."""
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    images, labels = batches(1)[0]
    with autocast(torch.float16):
        loss = adversary.loss(images, labels, cross_entropy, fraction=8 / 98_304 / 64)
    loss.backward()
    with pytest.warns(RuntimeWarning, match=r"input gradient is exactly zero.*fp16.*bf16"):
        adversary.collect()
    assert adversary.diagnostics.zero_share > 0.5


@pytest.mark.parametrize("name", ["sequential", "lookahead"])
def test_an_attack_of_its_own_needs_no_scale(name: str) -> None:
    """The fraction and the scale are of the training loss; an attack's own is lifted."""
    shares = []
    for dtype, fraction in ((torch.float32, 1.0), (torch.float16, 8 / 98_304 / 64)):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, name)
        batch = batches(1, size=64)[0]
        adversary.peek(*batch)
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            loss = adversary.loss(*batch, cross_entropy, fraction=fraction)
        loss.backward()
        adversary.collect()
        shares.append(adversary.diagnostics.zero_share.item())
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_and_images_of_another_type(make, dtype) -> None:
    model = network().to(dtype)
    adversary = conadv.Adversary(model, ATTACK, make(), track_agreement=True)
    run(adversary, sgd(model), [(x.to(dtype), y) for x, y in batches(4)])
    if adversary.preview is not None:
        assert adversary.preview[1].dtype == dtype
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_whole_step_inside_autocast_is_the_same() -> None:
    """collect() inside of the block, or outside."""
    nets = []
    for inside in (False, True):
        model = network()
        adversary, optimizer = conadv.Adversary(model, ATTACK, "recycled"), sgd(model)
        for images, labels in batches(3):
            with autocast(torch.bfloat16):
                loss = adversary.loss(images, labels, cross_entropy)
                if inside:
                    loss.backward()
                    adversary.collect()
            if not inside:
                loss.backward()
                adversary.collect()
            optimizer.step()
            optimizer.zero_grad()
        nets.append(model)
    assert_same_state(*nets)

"""The order of calls: what may be repeated, interrupted, left out, and what may not."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    EPSILON,
    MEAN,
    SCHEDULES,
    STD,
    assert_same_state,
    batches,
    cross_entropy,
    network,
    pending,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def test_collect_needs_a_loss() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    with pytest.raises(RuntimeError, match="without a loss"):
        adversary.collect()
    adversary.loss(*batches(1)[0], cross_entropy).backward()
    adversary.collect()
    with pytest.raises(RuntimeError, match="without a loss"):
        adversary.collect()


def test_collect_needs_a_backward_and_waits_for_it() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    loss = adversary.loss(*batches(1)[0], cross_entropy)
    with pytest.raises(RuntimeError, match=r"loss.backward\(\) before collect"):
        adversary.collect()
    loss.backward()
    adversary.collect()
    assert pending(adversary)


def test_a_backward_that_is_restricted_gives_no_input_gradient() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK)
    loss = adversary.loss(*batches(1)[0], cross_entropy)
    loss.backward(inputs=list(model.parameters()))
    with pytest.raises(RuntimeError, match="inputs="):
        adversary.collect()


@every_schedule
def test_a_loss_may_be_taken_again(make) -> None:
    """An optimizer's closure: the same copies and random numbers, so the same loss."""
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD)
    if make().name in ("sequential", "lookahead"):
        attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, random_start=1.0, target="random")
    model, data = network(), batches(4)
    adversary = conadv.Adversary(model, attack, make())
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    for images, labels in adversary.batches(data):
        values = []

        def closure(images=images, labels=labels, values=values):
            optimizer.zero_grad()
            loss = adversary.loss(images, labels, cross_entropy)
            loss.backward()
            values.append(loss.item())
            return loss

        closure()
        optimizer.step(closure)
        assert len(values) > 2 and values[0] == values[1] != values[2]
        adversary.collect()
    assert adversary.images == 32
    # Each evaluation is paid for.
    assert adversary.compute > 4 * 8 * 2


@every_schedule
def test_an_unfinished_round_is_begun_anew(make) -> None:
    """An exception at any point between two rounds leaves no trace in the weights."""
    nets = []
    for disturbed in (False, True):
        model, data = network(), batches(4)
        adversary, optimizer = conadv.Adversary(model, ATTACK, make()), sgd(model)
        for number, (images, labels) in enumerate(adversary.batches(data)):
            if disturbed and number == 2:
                # The running statistics are the forward's affair: put back by hand.
                before = copy.deepcopy(model.state_dict())

                def broken(outputs, given):
                    raise KeyError("criterion")

                with pytest.raises(KeyError):
                    adversary.loss(images, labels, broken)
                with pytest.raises(RuntimeError, match="without a loss"):
                    adversary.collect()
                adversary.loss(images, labels, cross_entropy)  # and no backward, no collect
                adversary.loss(images, labels, cross_entropy).backward()
                optimizer.zero_grad()
                model.load_state_dict(before)
            adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad()
        nets.append(model)
    assert_same_state(*nets)


@every_schedule
def test_routing_and_statistics_survive_an_exception_in_the_forward(make) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, make())
    run(adversary, sgd(model), batches(3))

    def fail(*_):
        raise MemoryError

    handle = model[8].register_forward_pre_hook(fail)
    images, labels = batches(1)[0]
    adversary.peek(images, labels)
    with pytest.raises(MemoryError):
        adversary.loss(images, labels, cross_entropy)
    handle.remove()
    # Outside of any round a split model is the clean one, in training mode, statistics tracked.
    assert all(m.training for m in model.modules())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    clean = conadv.plain(model)
    torch.testing.assert_close(model(images), clean(images), rtol=0, atol=0)


@every_schedule
def test_skip_leaves_a_round_out(make) -> None:
    model = network()
    adversary, optimizer = conadv.Adversary(model, ATTACK, make()), sgd(model)
    run(adversary, optimizer, batches(3))
    images = adversary.images
    adversary.loss(*batches(1)[0], cross_entropy)
    adversary.skip()
    adversary.skip()  # a round that was never begun
    assert adversary.images == images
    assert pending(adversary) == []
    run(adversary, optimizer, batches(2))
    assert adversary.images == images + 16


def test_lookahead_keeps_what_it_prepared_for_other_rounds() -> None:
    model, data = network(), batches(6)
    adversary, optimizer = conadv.Adversary(model, ATTACK, conadv.Lookahead(2)), sgd(model)
    used = []
    for number, (images, labels) in enumerate(adversary.batches(data)):
        loss = adversary.loss(images, labels, cross_entropy)
        used.append(adversary.diagnostics.adversarial_loss is not None)
        if number == 2:
            adversary.skip()
            continue
        loss.backward()
        adversary.collect()
        assert not used[-1] or torch.equal(adversary.preview[2], labels)
        optimizer.step()
        optimizer.zero_grad()
    # Round 4's copies would have been made in round 2.
    assert used == [False, False, True, True, False, True]


# -- random numbers ------------------------------------------------------------------------------


@every_schedule
def test_the_global_stream_moves_as_in_plain_training(make) -> None:
    """Dropout in the training forward draws; attacks, noise and starts do not."""
    attack = ATTACK
    if make().name in ("sequential", "lookahead"):
        attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, random_start=0.5, target="random")
    model, data = network(dropout=0.0), batches(4)
    adversary = conadv.Adversary(model, attack, make(), track_agreement=True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(adversary, sgd(model), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_draws_once_per_forward() -> None:
    drawn = []
    for name, count in (("vanilla", 1), ("sequential", 2), ("noise", 2)):
        model = network(dropout=0.5)
        adversary = conadv.Adversary(model, ATTACK, name, forward="separate")
        torch.manual_seed(7)
        adversary.loss(*batches(1)[0], cross_entropy)
        found = torch.rand(())
        torch.manual_seed(7)
        for _ in range(count):
            nn.functional.dropout(torch.ones(8, 8, 3, 3), 0.5)
        drawn.append(bool(found == torch.rand(())))
    assert drawn == [True] * 3


def test_the_seed_decides_the_attacks_random_numbers() -> None:
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, random_start=1.0)
    found = []
    for seed in (0, 0, 1):
        model = network()
        adversary = conadv.Adversary(model, attack, "sequential", seed=seed)
        run(adversary, sgd(model), batches(2))
        found.append(adversary.preview[1])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# -- several at once -----------------------------------------------------------------------------


@every_schedule
def test_two_adversaries_on_two_models_do_not_meet(make) -> None:
    data, alone = batches(4), []
    for name in ("other", "this"):
        model = network()
        schedule = make() if name == "this" else conadv.Noise()
        run(conadv.Adversary(model, ATTACK, schedule), sgd(model), data)
        alone.append(model)
    nets = [network(), network()]
    schedules = [conadv.Noise(), make()]
    sides = [(conadv.Adversary(m, ATTACK, s), sgd(m)) for m, s in zip(nets, schedules, strict=True)]
    loops = [adversary.batches(data) for adversary, _ in sides]
    for both in zip(*loops, strict=True):
        losses = [
            adversary.loss(*batch, cross_entropy)
            for (adversary, _), batch in zip(sides, both, strict=True)
        ]
        sum(losses).backward()
        for adversary, optimizer in sides:
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad()
    for net, expected in zip(nets, alone, strict=True):
        assert_same_state(net, expected)


@every_schedule
def test_an_averaged_copy_of_the_model_is_left_alone(make) -> None:
    model = network()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    frozen = copy.deepcopy(average.module)
    adversary = conadv.Adversary(model, ATTACK, make())
    run(adversary, sgd(model), batches(3))
    assert_same_state(average.module, frozen)
    images = batches(1)[0][0]
    with conadv.route(model, "adversarial"):  # routing the model does not route its copy
        torch.testing.assert_close(average(images), frozen(images), rtol=0, atol=0)
    average.update_parameters(model)
    assert not torch.equal(average.module[0].weight, frozen[0].weight)


@every_schedule
def test_preview_holds_a_few_of_the_last_copies(make) -> None:
    model, data = network(), batches(4, size=40)
    adversary = conadv.Adversary(model, ATTACK, make())
    run(adversary, sgd(model), data)
    if adversary.schedule.name == "vanilla":
        assert adversary.preview is None
        return
    origins, copies, labels = adversary.preview
    few = min(16, len(copies))
    assert copies.shape == (few, 3, 8, 8) and labels.shape == (few,)
    assert copies.untyped_storage().nbytes() == copies.numel() * 4, "no view of the whole batch"
    if origins is not None:
        std = torch.tensor(STD).view(1, 3, 1, 1)
        assert ((copies - origins) * std).abs().max() == pytest.approx(EPSILON, rel=1e-3)

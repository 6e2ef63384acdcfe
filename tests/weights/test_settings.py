"""What can be set, what it does, and what is refused."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import conadv
from conadv.weights import (
    Lookahead,
    Noise,
    Recycled,
    Sequential,
    Slot,
    WeightAdversary,
    WeightAttack,
    WeightSchedule,
)
from support.loops import ATTACK as IMAGE_ATTACK
from support.loops import assert_same_state, batches, cross_entropy, network, run, sgd
from support.weights import ATTACK, DATA, cut, train

off_then_on = conadv.PiecewiseLinear([(0.5, 0.0), (0.5, 0.5)])


# -- share, weight and radius over training ------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: Recycled(weight=off_then_on), lambda: Recycled(share=off_then_on)]
)
def test_only_late(make) -> None:
    """Before its time a copy neither costs nor is kept; then the first round makes it."""
    model = network()
    adversary = WeightAdversary(model, ATTACK, make())
    images_seen = []
    for number, (images, labels) in enumerate(DATA * 2):
        adversary.progress = number / 10
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        model.zero_grad(set_to_none=True)
        images_seen.append(adversary.diagnostics.images)
        kept = [e for entry in adversary.state_dict()["state"]["pending"] for e in entry]
        assert bool(kept) == (number >= 5)
    half = images_seen[-1] - 8
    assert images_seen == [8] * 6 + [8 + half] * 4 and half in (4, 8)


def test_a_radius_of_zero_is_training_twice_on_the_same_images() -> None:
    radius = conadv.PiecewiseLinear([(0.0, 0.0), (1.0, 0.1)])
    model = network()
    adversary = WeightAdversary(model, WeightAttack(radius, micro_batch=4), Sequential())
    images, labels = DATA[0]
    for progress, moved in ((0.0, False), (1.0, True)):
        adversary.progress = progress
        adversary.loss(images, labels, cross_entropy)
        seen = adversary.diagnostics
        assert (seen.perturbed_loss > seen.clean_loss + 1e-4) == moved


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_a_share_of_the_micro_batches(share: float, count: int) -> None:
    images, labels = batches(1, size=16)[0]
    adversary = WeightAdversary(network(), ATTACK, Sequential(share=share))
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    assert adversary.diagnostics.compute == 16 + 4 * count
    kept = WeightAdversary(network(), ATTACK, Recycled(share=share))
    kept.loss(images, labels, cross_entropy).backward()
    kept.collect()
    pending = kept.state_dict()["state"]["pending"][0]
    assert sum(entry["gradient"] is not None for entry in pending) == count


@pytest.mark.parametrize(
    "make",
    [Sequential, Recycled, Lookahead, Slot, Noise, lambda every: Sequential(0.5, 0.5, every)],
)
@pytest.mark.parametrize("centred", [True, False])
def test_between_the_steps_in_turn_training_is_ordinary(make, centred: bool) -> None:
    """A step without copies is vanilla's from the same weights, bit for bit."""
    data, attack = batches(7), WeightAttack(0.05, micro_batch=4, centred=centred)
    model, plain = network(), network()
    adversary = WeightAdversary(model, attack, make(every=3))
    ordinary = WeightAdversary(plain, attack, "none")
    optimizer, other = sgd(model), sgd(plain)
    for number, (images, labels) in enumerate(adversary.batches(data)):
        plain.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train_on(adversary, optimizer, images, labels)
        train_on(ordinary, other, images, labels)
        moved = number % 3 == 2
        assert (adversary.diagnostics.perturbed_loss is not None) == moved
        weights = zip(model.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in weights) != moved


def test_the_mean_is_over_all_micro_batches_also_where_few_are_kept() -> None:
    images, labels = batches(1, size=16)[0]
    found = []
    for share in (1.0, 0.5):
        adversary = WeightAdversary(network(), ATTACK, Recycled(share=share))
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        found.append(adversary.state_dict()["state"]["pending"][0])
    for whole, some in zip(*found, strict=True):
        if some["gradient"] is not None:
            for a, b in zip(whole["gradient"], some["gradient"], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_fixed_budget() -> None:
    adversary = WeightAdversary(network(), ATTACK, Recycled(budget="fixed"))
    assert adversary.fresh_images(96) == 48
    assert WeightAdversary(network(), ATTACK, Recycled()).fresh_images(96) == 96
    third = WeightAdversary(network(), ATTACK, Recycled(share=0.5, budget="fixed"))
    assert third.fresh_images(96) == 64
    changing = WeightAdversary(network(), ATTACK, Recycled(share=off_then_on, budget="fixed"))
    with pytest.raises(ValueError, match="one number"):
        changing.fresh_images(96)


# -- which weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("matrices", ["0.weight", "3.weight", "8.weight"]),
        ("norm", ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (lambda name, p: name.startswith("8"), ["8.weight", "8.bias"]),
    ],
)
def test_which_weights_move(choice, names) -> None:
    model = network(split=False)
    attack = WeightAttack(0.05, parameters=choice, micro_batch=4)
    adversary = WeightAdversary(model, attack)
    assert adversary._passes.space.names == names
    losses = run(adversary, sgd(model, 0.05), batches(2) * 6)
    assert sum(losses[-3:]) < sum(losses[:3])
    everything = WeightAdversary(model, WeightAttack(parameters="all"), "sequential")
    assert len(everything._passes.space.names) == len(list(model.parameters()))


@pytest.mark.parametrize("make", [Slot, Recycled, Sequential])
def test_all_weights_of_a_split_model(make) -> None:
    """Those of a branch that no pass goes through have no gradient of their own."""
    model, adversary = train(make, DATA, WeightAttack(0.05, parameters="all", micro_batch=4))
    assert len(adversary._passes.space.names) == len(list(model.parameters()))
    assert adversary.diagnostics.perturbed_loss.isfinite()


def test_frozen_weights_stay_where_they_are() -> None:
    model = network()
    for p in model[:6].parameters():
        p.requires_grad_(False)
    adversary = WeightAdversary(model, ATTACK)
    assert adversary._passes.space.names == ["8.weight"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    run(adversary, optimizer, DATA)


# -- random numbers ------------------------------------------------------------------------------


def test_noise_is_a_function_of_the_seed_and_the_place_in_the_run() -> None:
    def directions(seed: int, keys: list[int]) -> list[torch.Tensor]:
        schedule, seen = Noise(), []
        original = schedule.copies
        schedule.copies = lambda current: seen.extend(original(current)) or seen[-2:]
        adversary = WeightAdversary(network(), ATTACK, schedule, seed=seed)
        for key in keys:
            adversary.key = key
            adversary.loss(*DATA[0], cross_entropy).backward()
            adversary.collect()
        return [copy.direction() for copy in seen]

    first, again, other = directions(0, [3, 4]), directions(0, [4, 3]), directions(1, [3, 4])
    assert torch.equal(first[0], again[2]) and torch.equal(first[3], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize("make", [Lookahead, Sequential, Recycled, Noise])
def test_the_caller_s_random_numbers_are_those_of_its_own_passes(make) -> None:
    """Ascents of later images draw dropout from a stream of their own."""
    model = network(dropout=0.5)
    adversary = WeightAdversary(model, WeightAttack(0.05, micro_batch=4), make())
    for number, (images, labels) in enumerate(adversary.batches(DATA[:3])):
        adversary.loss(images, labels, cross_entropy).backward()
        before = torch.get_rng_state()
        adversary.collect()
        assert torch.equal(before, torch.get_rng_state()), number


# -- rounds that are left out --------------------------------------------------------------------


def train_on(
    adversary: WeightAdversary, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels
) -> None:
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_idle_rounds_drop_what_was_theirs() -> None:
    adversary = WeightAdversary(network(), ATTACK, "recycled", rounds=2)
    for _ in range(2):
        adversary.loss(*DATA[0], cross_entropy, fraction=0.5).backward()
        adversary.collect()
    adversary.loss(*DATA[1], cross_entropy, fraction=0.5).backward()
    with pytest.raises(RuntimeError, match="idle"):
        adversary.idle()
    adversary.collect()
    adversary.idle()
    assert [len(e) for e in adversary.state_dict()["state"]["pending"]] == [2, 0]
    with pytest.raises(RuntimeError, match="without a loss"):
        adversary.collect()
    adversary.loss(*DATA[1], cross_entropy)
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\) before collect\(\)"):
        adversary.collect()


def test_a_loop_may_leave_batches_out() -> None:
    """What was looked at for a batch without a round lands on no other."""
    data = batches(8)
    model, twin = network(), network()
    adversary = WeightAdversary(model, ATTACK, Lookahead(tau=2))
    by_hand = WeightAdversary(twin, ATTACK, Lookahead(tau=2))
    optimizers, counts = (sgd(model), sgd(twin)), []
    for number, (images, labels) in enumerate(adversary.batches(data)):
        if number == 3:
            continue
        train_on(adversary, optimizers[0], images, labels)
        counts.append(len(adversary.state_dict()["state"]["pending"][0]))
        # The same by hand, where a round that is left out is said to be.
        if number == 4:
            by_hand.skip()
        if number + 2 < 8:
            by_hand.peek(*data[number + 2])
        train_on(by_hand, optimizers[1], images, labels)
    assert_same_state(model, twin)
    # What is due next. Nobody looked at batch 1, nor at batch 5: that was to be done beside 3.
    assert counts == [0, 2, 2, 0, 2, 2, 0]


def test_a_batch_left_out_within_a_step_leaves_no_gradient_without_its_mean() -> None:
    adversary = WeightAdversary(network(), ATTACK, "lookahead", rounds=2)
    for number, (images, labels) in enumerate(adversary.batches(batches(6))):
        if number in (1, 2):  # batch 2 was looked at in the step that is not over
            continue
        adversary.loss(images, labels, cross_entropy, fraction=0.5).backward()
        if number == 3:
            assert adversary.diagnostics.perturbed_loss is None
        adversary.collect()
    assert adversary.diagnostics.perturbed_loss is not None


def test_waits_for_other_ranks_are_announced() -> None:
    entered: list[int] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        entered.append(adversary.images)
        yield

    adversary = WeightAdversary(network(), ATTACK, "recycled", rounds=2)
    adversary.wait_within(waiting)
    for images, labels in DATA:
        adversary.loss(images, labels, cross_entropy, fraction=0.5).backward()
        adversary.collect()
    # For the mean of a step, when the next one begins.
    assert entered == [16, 32]


def test_the_mean_is_waited_for_when_a_direction_is_needed() -> None:
    """It travels beside the next clean passes."""
    order: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        order.append("wait")
        yield

    model = network()
    model.register_forward_pre_hook(lambda *_: order.append("pass"))
    adversary = WeightAdversary(model, ATTACK, "recycled")
    adversary.wait_within(waiting)
    for images, labels in DATA[:2]:
        order.clear()
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    assert order == ["pass", "pass", "wait", "pass", "pass"]


def test_images_that_nobody_looked_at_are_told_and_trained_on_as_they_are() -> None:
    data = batches(4)
    adversary = WeightAdversary(network(), ATTACK, "lookahead")
    adversary.peek(*data[1])
    adversary.loss(*data[0], cross_entropy).backward()
    adversary.collect()
    with pytest.warns(RuntimeWarning, match="Other images were attacked for this round"):
        adversary.loss(*data[2], cross_entropy)
    assert adversary.diagnostics.perturbed_loss is None


@pytest.mark.parametrize("tau", [1, 2])
def test_a_void_round_puts_no_image_in_another_s_place(tau: int) -> None:
    data = batches(6)
    adversary = WeightAdversary(network(), ATTACK, Lookahead(tau=tau))
    for number in range(6):
        if number == 3:
            before = adversary.state_dict()
        if number + tau < 6:
            adversary.peek(*data[number + tau])
        adversary.loss(*data[number], cross_entropy).backward()
        moved = adversary.diagnostics.perturbed_loss is not None
        assert moved == (number >= tau and number - tau != 3)
        adversary.collect()
        if number == 3:  # as the trainer does it
            adversary.load_state_dict(before)
            adversary.skip()


def test_an_optimizer_s_closure_begins_a_round_anew() -> None:
    plain, model = network(), network()
    for net, times in ((plain, 1), (model, 3)):
        adversary, optimizer = WeightAdversary(net, ATTACK), sgd(net)
        for images, labels in DATA:
            statistics = {n: b.clone() for n, b in net.named_buffers()}
            for _ in range(times):
                net.load_state_dict({**net.state_dict(), **statistics})
                optimizer.zero_grad(set_to_none=True)
                adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()
            optimizer.step()
        assert adversary.images == 40
    assert_same_state(plain, model, rtol=1e-6, atol=1e-6)


# -- beside copies of images ---------------------------------------------------------------------


@pytest.mark.parametrize("of_images", ["recycled", "sequential", "lookahead", "noise"])
@pytest.mark.parametrize("make", [Recycled, Sequential, lambda: Slot(weight=0.5), Noise])
def test_images_and_weights_together(of_images: str, make) -> None:
    model = network()
    images_adversary = conadv.Adversary(model, IMAGE_ATTACK, of_images)
    attack = WeightAttack(0.05)
    adversary = WeightAdversary(model, attack, make(), adversary=images_adversary, rounds=2)
    optimizer, losses = sgd(model, 0.05), []
    pieces = [piece for images, labels in batches(2) * 8 for piece in cut(images, labels, 4)]
    for number, (images, labels) in enumerate(adversary.batches(pieces)):
        loss = adversary.loss(images, labels, cross_entropy, fraction=0.5)
        loss.backward()
        adversary.collect()
        losses.append(loss.item())
        if number % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    seen = adversary.diagnostics
    assert None not in (seen.clean_loss, seen.adversarial_loss, seen.perturbed_loss)
    assert seen.adversarial_loss is not seen.perturbed_loss and adversary.preview is not None
    assert adversary.images == images_adversary.images == 8 * 16
    assert seen.images == 4 + 4 + 4


def test_with_a_schedule_that_moves_nothing_the_images_adversary_is_itself() -> None:
    plain, model = network(), network()
    run(conadv.Adversary(plain, IMAGE_ATTACK, "recycled"), sgd(plain), DATA)
    inner = conadv.Adversary(model, IMAGE_ATTACK, "recycled")
    adversary = WeightAdversary(model, WeightAttack(), "none", adversary=inner)
    run(adversary, sgd(model), DATA)
    assert_same_state(plain, model, rtol=1e-6, atol=1e-7)
    assert adversary.compute == inner.compute


def test_further_views_are_a_part_of_the_clean_loss() -> None:
    model = conadv.split_norms(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 5)))
    adversary = WeightAdversary(model, ATTACK)
    images, labels = DATA[0]
    views = {"adversarial": (images.flip(3), labels)}
    for count in (16, 24):
        adversary.loss(images, labels, cross_entropy, views=views).backward()
        adversary.collect()
        assert adversary.diagnostics.images == count
    assert model[1].norms["adversarial"].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="weight below 1"):
        WeightAdversary(model, ATTACK, "sequential").loss(
            images, labels, cross_entropy, views=views
        )


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rho": -0.1}, "rho=-0.1"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"radius": "ball"}, "'layer' and 'global'"),
        ({"centred": "yes"}, "True, False and None"),
        ({"parameters": "convolutions"}, "'matrices', 'norm', 'all'"),
        ({"micro_batch": 0}, "from 1, or None"),
        ({"dtype": torch.float16}, "bfloat16 or torch.float32"),
    ],
)
def test_bad_attacks(options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WeightAttack(**options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Recycled(weight=1.0), "sequential"),
        (lambda: Recycled(budget="small"), "'extra' and 'fixed'"),
        (lambda: Lookahead(tau=0), "'sequential'"),
        (lambda: WeightSchedule(share=2.0), "share=2"),
        (lambda: Slot(weight=-1.0), "weight=-1"),
        (lambda: Noise(every=0), "every=0"),
        (lambda: Recycled(every=2, budget="fixed"), "change from step to step"),
    ],
)
def test_bad_schedules(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_does_not_go_together() -> None:
    model = network()
    inner = conadv.Adversary(model, IMAGE_ATTACK, "lookahead")

    def make(attack=ATTACK, schedule="recycled", **options):
        return WeightAdversary(model, attack, schedule, **options)

    with pytest.raises(ValueError, match="allowed are none, sequential, recycled"):
        make(schedule="yesterday")
    with pytest.raises(ValueError, match="rounds=0"):
        make(rounds=0)
    with pytest.raises(ValueError, match="micro_batch=4 with adversary="):
        make(adversary=inner)
    with pytest.raises(ValueError, match="both look ahead"):
        make(WeightAttack(), "lookahead", adversary=inner)
    with pytest.raises(ValueError, match="of another model"):
        make(WeightAttack(), adversary=conadv.Adversary(network(), IMAGE_ATTACK))
    collected = conadv.Adversary(model, IMAGE_ATTACK, auto_collect=True)
    with pytest.raises(ValueError, match="auto_collect=True"):
        make(WeightAttack(), adversary=collected)
    with pytest.raises(ValueError, match="in which the images' own loss cannot stay whole"):
        make(WeightAttack(), adversary=conadv.Adversary(model, IMAGE_ATTACK, loss="sum"))
    of_layer = conadv.Adversary(model, conadv.Attack(0.1, at="0"))
    with pytest.raises(ValueError, match="perturbs the layer '0'"):
        make(WeightAttack(), adversary=of_layer)
    with pytest.raises(ValueError, match="centred=True with rounds=2"):
        make(WeightAttack(centred=True), "sequential", rounds=2)
    with pytest.raises(ValueError, match="the only micro-batch of a step"):
        make(WeightAttack()).loss(*DATA[0], cross_entropy)
    with pytest.raises(ValueError, match="chooses none"):
        make(WeightAttack(parameters=lambda name, p: False))
    mixed = make(
        WeightAttack(),
        Sequential(weight=1.0),
        adversary=conadv.Adversary(model, IMAGE_ATTACK, "noise"),
    )
    with pytest.raises(ValueError, match="weight below 1"):
        mixed.loss(*DATA[0], cross_entropy)
    with pytest.raises(ValueError, match="label is 7"):
        make().loss(DATA[0][0], torch.full((8,), 7), cross_entropy)


def test_lookahead_must_be_given_the_batch_that_it_saw() -> None:
    adversary = WeightAdversary(network(), ATTACK, "lookahead")
    adversary.peek(*DATA[1])
    adversary.loss(*DATA[0], cross_entropy).backward()
    adversary.collect()
    with pytest.raises(RuntimeError, match="2 micro-batches were looked at"):
        adversary.loss(DATA[1][0][:4], DATA[1][1][:4], cross_entropy)


def test_a_ragged_last_micro_batch_counts_by_its_images() -> None:
    images, labels = batches(1, size=10)[0]
    model = network()
    adversary = WeightAdversary(model, ATTACK)
    loss = adversary.loss(images, labels, cross_entropy)
    parts = cut(images, labels, 4)
    twin = network()
    expected = sum(cross_entropy(twin(x), y) * len(x) / 10 for x, y in parts)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    adversary.collect()
    run(adversary, sgd(model), [(images, labels), *DATA])
    assert train(Recycled, DATA)[1].images == 40

"""Share and weight: fixed numbers, and numbers that follow training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conadv
from conadv.adversary.mixing import Part, weights_of
from support.loops import ATTACK, SCHEDULES, batches, cross_entropy, network, run, sgd

QUICK = settings(max_examples=60, deadline=None)

MAKERS = {
    "sequential": conadv.Sequential,
    "lookahead": conadv.Lookahead,
    "recycled": conadv.Recycled,
    "noise": conadv.Noise,
}
parts = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=5)


def made(sizes):
    return [Part("b", torch.empty(n, 1), None, adversarial) for n, adversarial in sizes]


# -- weights_of --------------------------------------------------------------------------------


@QUICK
@given(parts, st.none() | st.floats(0, 1))
def test_weights_sum_to_one_and_are_never_negative(sizes, weight) -> None:
    weights = weights_of(made(sizes), weight)
    assert math.isclose(sum(weights), 1.0)
    assert all(w >= 0 for w in weights)


@QUICK
@given(parts, st.none() | st.floats(0.01, 0.99))
def test_images_of_one_kind_count_the_same(sizes, weight) -> None:
    weights = weights_of(made(sizes), weight)
    for kind in (True, False):
        each = [
            w / n for w, (n, adversarial) in zip(weights, sizes, strict=True) if adversarial == kind
        ]
        assert all(math.isclose(w, each[0]) for w in each)


@QUICK
@given(parts, st.floats(0, 1))
def test_the_copies_share_their_weight(sizes, weight) -> None:
    weights = weights_of(made(sizes), weight)
    kinds = {adversarial for _, adversarial in sizes}
    total = sum(w for w, (_, adversarial) in zip(weights, sizes, strict=True) if adversarial)
    expected = weight if len(kinds) == 2 else float(True in kinds)
    assert math.isclose(total, expected, abs_tol=1e-12)


@QUICK
@given(parts)
def test_without_a_weight_every_image_counts_the_same(sizes) -> None:
    total = sum(n for n, _ in sizes)
    expected = [n / total for n, _ in sizes]
    assert weights_of(made(sizes), None) == pytest.approx(expected)


# -- in the loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, 0.25, lambda progress: progress / 2])
@pytest.mark.parametrize("name", MAKERS)
def test_the_loss_is_the_weighted_mean_of_its_diagnostics(name, weight) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, MAKERS[name](share=0.5, weight=weight))
    adversary.progress = 0.5
    losses = run(adversary, sgd(model), batches(3))
    d = adversary.diagnostics
    # Without a weight by the number of images: lookahead has nothing due only in its first round.
    share = 4 / 12 if weight is None else 0.25
    expected = (1 - share) * d.clean_loss + share * d.adversarial_loss
    assert losses[-1] == pytest.approx(expected.item())


@pytest.mark.parametrize("setting", ["share", "weight"])
@pytest.mark.parametrize("name", MAKERS)
def test_what_has_faded_to_zero_costs_nothing(name, setting) -> None:
    fading = conadv.PiecewiseLinear([(0.0, 0.5), (0.5, 0.5), (0.5, 0.0)])
    model, data = network(), batches(6)
    adversary = conadv.Adversary(model, ATTACK, MAKERS[name](**{setting: fading}))
    optimizer, costs = sgd(model), []
    for number, (images, labels) in enumerate(adversary.batches(data)):
        adversary.progress = number / 6
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        costs.append(adversary.diagnostics.compute)
        optimizer.step()
    assert min(costs[1:3]) > 8
    # At the change a copy that was pending is dropped, not trained on with a weight of zero.
    assert costs[3:] == [8, 8, 8] or setting == "share"
    assert costs[4:] == [8, 8]
    assert adversary.diagnostics.adversarial_loss is None


@pytest.mark.parametrize("name", MAKERS)
def test_a_schedule_that_starts_later_starts_clean(name) -> None:
    rising = conadv.PiecewiseLinear([(0.5, 0.0), (0.5, 0.5)])
    model = network()
    adversary = conadv.Adversary(model, ATTACK, MAKERS[name](share=rising))
    optimizer = sgd(model)
    run(adversary, optimizer, batches(2))
    assert adversary.compute == 16
    adversary.progress = 0.5
    run(adversary, optimizer, batches(3))
    assert adversary.diagnostics.images == 12


# -- the numbers themselves --------------------------------------------------------------------


def test_piecewise_linear() -> None:
    line = conadv.PiecewiseLinear([(0.2, 1.0), (0.4, 0.0), (0.4, 0.5), (0.8, 0.1)])
    values = [line(p) for p in (0.0, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)]
    assert values == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.3, 0.1, 0.1])
    assert repr(line).startswith("PiecewiseLinear([(0.2, 1.0)")


@QUICK
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_piecewise_linear_stays_between_its_points(points, progress) -> None:
    line = conadv.PiecewiseLinear(sorted(points, key=lambda point: point[0]))
    values = [value for _, value in points]
    assert min(values) - 1e-9 <= line(progress) <= max(values) + 1e-9


@pytest.mark.parametrize("points", [[], [(0.5, 1), (0.4, 1)], [(-0.1, 1)], [(0, 1), (1.1, 1)]])
def test_piecewise_linear_refuses_other_points(points) -> None:
    with pytest.raises(ValueError, match="points"):
        conadv.PiecewiseLinear(points)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("setting", ["share", "weight"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), lambda p: 2.0, lambda p: -p])
def test_numbers_outside_their_range_are_refused(name, setting, value) -> None:
    with pytest.raises(ValueError, match=rf"{setting}=.*allowed is 0 to 1"):
        MAKERS[name](**{setting: value})


def test_every_name_has_a_class() -> None:
    assert {make().name for make in SCHEDULES.values()} == set(conadv.schedules.SCHEDULES)

"""A fixed image budget: a step costs what a vanilla step of the same batch costs."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import conadv
from support.loops import ATTACK, batches, network, run, sgd

QUICK = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(("share", "total", "fresh"), [(0.25, 32, 24), (0.5, 10, 5), (0.1, 20, 18)])
def test_the_models_batch_is_the_budget_from_round_two(share, total, fresh) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(share=share, budget="fixed"))
    assert adversary.fresh_images(total) == fresh
    optimizer, trained, cost = sgd(model), [], []
    for batch in batches(4, size=fresh):
        run(adversary, optimizer, [batch])
        trained.append(adversary.diagnostics.images)
        cost.append(adversary.diagnostics.compute)
    assert trained == [fresh, total, total, total]
    assert cost == trained
    assert adversary.images == 4 * fresh
    assert adversary.compute == fresh + 3 * total


@QUICK
@given(
    total=st.integers(2, 5000),
    share=st.floats(0.0, 0.5),
    refine=st.integers(1, 4),
)
@example(total=10, share=0.25, refine=1)
@example(total=11, share=0.25, refine=1)
@example(total=5, share=0.5, refine=1)
@example(total=128, share=0.3, refine=1)
def test_fresh_images_and_copies_never_pass_the_budget(total, share, refine) -> None:
    schedule = conadv.Recycled(share=share, budget="fixed", refine=refine)
    fresh = schedule.fresh_images(total)
    copies = schedule.count(fresh, 0.0)
    assert 1 <= fresh <= total
    assert total - 1 <= fresh + copies <= total
    assert copies <= share * (fresh + copies) + 1e-3


@QUICK
@given(size=st.integers(1, 400), parts=st.integers(2, 9), refine=st.integers(1, 4))
def test_the_budget_is_met_where_the_share_is_of_whole_images(size, parts, refine) -> None:
    schedule = conadv.Recycled(share=1 / parts, budget="fixed", refine=refine)
    fresh = schedule.fresh_images(size * parts)
    assert fresh == size * (parts - 1) and schedule.count(fresh, 0.0) == size


def test_a_budget_of_one_image_has_no_room_for_an_image_and_its_copy() -> None:
    assert conadv.Recycled(share=0.5, budget="fixed").fresh_images(1) == 0
    assert conadv.Recycled(share=0.25, budget="fixed").fresh_images(1) == 1


def test_large_shares_need_a_longer_life() -> None:
    with pytest.raises(ValueError, match=r"share=0.6.*refine=1.*at most 0.5"):
        conadv.Recycled(share=0.6, budget="fixed")
    schedule = conadv.Recycled(share=0.6, budget="fixed", refine=2)
    assert schedule.fresh_images(10) == 4 and schedule.count(4, 0.0) == 6


def test_extra_images_are_beside_the_budget() -> None:
    schedule = conadv.Recycled(share=0.5)
    assert schedule.fresh_images(32) == 32 and schedule.count(32, 0.0) == 16


@pytest.mark.parametrize("schedule", [conadv.Sequential(), conadv.Lookahead(), conadv.Vanilla()])
def test_other_schedules_take_all_images_fresh(schedule) -> None:
    assert schedule.fresh_images(32) == 32


def test_a_share_that_moves_has_no_one_number() -> None:
    share = conadv.PiecewiseLinear([(0.0, 0.1), (1.0, 0.4)])
    schedule = conadv.Recycled(share=share, budget="fixed")
    with pytest.raises(ValueError, match="follows a schedule"):
        schedule.fresh_images(32)
    assert schedule.count(60, 1.0) == 40


def test_a_weight_of_zero_leaves_the_whole_budget_to_fresh_images() -> None:
    assert conadv.Recycled(share=0.25, budget="fixed", weight=0.0).fresh_images(32) == 32


@pytest.mark.parametrize("budget", ["free", None, ""])
def test_unknown_budgets_are_refused(budget) -> None:
    with pytest.raises(ValueError, match="'extra' and 'fixed'"):
        conadv.Recycled(budget=budget)


def test_a_ragged_batch_gets_its_part() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(share=0.25, budget="fixed"))
    optimizer = sgd(model)
    run(adversary, optimizer, [*batches(2, size=6), *batches(1, size=3), *batches(1, size=6)])
    assert adversary.diagnostics.images == 6 + 1
    assert torch.is_tensor(adversary.diagnostics.adversarial_loss)

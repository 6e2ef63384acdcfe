"""The pipeline: a copy's own backward refines it. Oracle: PGD by hand at each round's weights."""

import copy

import pytest
import torch

import conadv
from support.loops import (
    ATTACK,
    EPSILON,
    MEAN,
    STD,
    batches,
    cross_entropy,
    input_gradient,
    network,
    run,
    sgd,
    sign_step,
)

STEP = EPSILON / 2


def population(adversary):
    """The cohorts that the next round trains on, oldest first: (age, number of images)."""
    return [(c["age"], len(c["images"])) for c in adversary.state_dict()["state"]["pending"]]


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_a_copy_takes_k_steps_along_the_weights_of_k_rounds(forward: str) -> None:
    refine, model, data = 3, network(), batches(4, size=9)
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, step_size=STEP)
    adversary = conadv.Adversary(model, attack, conadv.Recycled(refine=refine), forward=forward)
    optimizer, cohort = sgd(model), slice(0, 3)
    (images, labels), expected = data[0], None
    for number, (x, y) in enumerate(data):
        if number == 0:  # born of the clean pass, whose statistics are those of the whole batch
            gradient = input_gradient(model, x, y, "clean")[cohort]
            expected = sign_step(x[cohort], gradient, STEP)
        elif number < refine:  # refined by the pass of all cohorts, normalised together
            cohorts = adversary.schedule._pending
            mixed = torch.cat([c.images for c in cohorts])
            mixed_labels = torch.cat([c.labels for c in cohorts])
            gradient = input_gradient(model, mixed, mixed_labels, "adversarial")[:3]
            expected = sign_step(expected, gradient, STEP, origin=images[cohort])
        adversary.loss(x, y, cross_entropy).backward()
        adversary.collect()
        if number < refine:
            oldest = adversary.schedule._pending[0]
            torch.testing.assert_close(oldest.images, expected)
            assert torch.equal(oldest.labels, labels[cohort])
            assert oldest.age == number + 1
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # After its third step it was trained on once more, and retired.
    assert all(not torch.equal(c.origins, images[cohort]) for c in adversary.schedule._pending)


@pytest.mark.parametrize(
    ("schedule", "size", "expected"),
    [
        (lambda: conadv.Recycled(refine=3), 9, 9),
        (lambda: conadv.Recycled(refine=3), 8, 8),
        (lambda: conadv.Recycled(refine=3), 2, 2),
        (lambda: conadv.Recycled(refine=2, share=0.5), 8, 4),
        (lambda: conadv.Recycled(refine=4, share=0.5, budget="fixed"), 8, 8),
        (lambda: conadv.Recycled(refine=2, share=2 / 3, budget="fixed"), 4, 8),
    ],
)
def test_the_population_is_constant_once_the_pipeline_is_full(schedule, size, expected) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, schedule())
    optimizer, refine = sgd(model), adversary.schedule.refine
    for number, batch in enumerate(batches(8, size=size)):
        run(adversary, optimizer, [batch])
        ages, sizes = zip(*population(adversary), strict=True)
        assert sum(sizes) <= expected and max(ages) <= refine and max(sizes) <= size
        if number + 1 >= refine:
            assert sum(sizes) == expected
            assert adversary.diagnostics.images == size + expected or number + 1 == refine
        assert list(ages) == sorted(ages, reverse=True), "the oldest first"


def test_cohorts_enter_one_per_round_and_retire_after_refine_rounds() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=3))
    optimizer, seen = sgd(model), []
    for batch in batches(5, size=9):
        run(adversary, optimizer, [batch])
        seen.append(population(adversary))
    assert seen == [
        [(1, 3)],
        [(2, 3), (1, 3)],
        [(3, 3), (2, 3), (1, 3)],
        [(3, 3), (2, 3), (1, 3)],
        [(3, 3), (2, 3), (1, 3)],
    ]


def test_copies_stay_in_the_ball_and_in_the_pixel_range() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=3))
    run(adversary, sgd(model), batches(4, size=9))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    for copies in adversary.schedule._pending:
        pixels = copies.images * std + mean
        assert ((copies.images - copies.origins) * std).abs().max() <= EPSILON + 1e-6
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


def test_the_default_step_size_is_that_of_pgd() -> None:
    pgd = conadv.Attack(EPSILON, mean=MEAN, std=STD, steps=4)
    attack = conadv.Adversary(network(), ATTACK, conadv.Recycled(refine=4)).attack
    assert attack.resolved_step_size == pytest.approx(pgd.resolved_step_size)
    single = conadv.Adversary(network(), ATTACK, "recycled").attack
    assert single.resolved_step_size == EPSILON


def test_a_share_that_falls_to_zero_ends_the_pipeline() -> None:
    share = conadv.PiecewiseLinear([(0.0, 1.0), (0.5, 1.0), (0.5, 0.0)])
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(share=share, refine=2))
    optimizer = sgd(model)
    run(adversary, optimizer, batches(3))
    adversary.progress = 0.6
    run(adversary, optimizer, batches(1))
    assert population(adversary) == []
    assert adversary.diagnostics.compute == 8


def test_a_share_that_shrinks_lets_copies_retire() -> None:
    model, share = network(), 1.0
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(share=lambda _: share, refine=2))
    optimizer = sgd(model)
    run(adversary, optimizer, batches(3))
    assert population(adversary) == [(2, 4), (1, 4)]
    share = 0.25
    totals = []
    for batch in batches(3):
        run(adversary, optimizer, [batch])
        totals.append(sum(size for _, size in population(adversary)))
    assert totals == [4, 1, 2]


@pytest.mark.parametrize("refine", [0, -1, 1.5, True])
def test_refine_is_a_whole_number(refine) -> None:
    with pytest.raises(ValueError, match="refine"):
        conadv.Recycled(refine=refine)


def test_state_of_another_refine_is_refused() -> None:
    one = conadv.Adversary(network(), ATTACK, conadv.Recycled())
    two = conadv.Adversary(network(), ATTACK, conadv.Recycled(refine=2))
    run(one, sgd(network()), [])
    with pytest.raises(ValueError, match="refine=1"):
        two.load_state_dict(copy.deepcopy(one.state_dict()))

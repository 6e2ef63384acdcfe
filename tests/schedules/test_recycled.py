"""Our schedule. Oracle: torch.autograd.grad by hand through the clean branch, same weights."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    EPSILON,
    MEAN,
    STD,
    assert_same_state,
    batches,
    cross_entropy,
    input_gradient,
    network,
    pending,
    run,
    sgd,
    sign_step,
)


def rounds(model, adversary, data, optimizer=None):
    """Train round by round; yield the weights of each round, its batch, and the copies it used."""
    optimizer = optimizer or sgd(model)
    for images, labels in data:
        before = copy.deepcopy(model)
        adversary.preview = None
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        yield before, images, labels, adversary.preview
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_copies_are_what_autograd_gives_through_the_clean_branch(forward: str) -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "recycled", forward=forward)
    expected = None
    for before, images, labels, used in rounds(model, adversary, batches(4)):
        if expected is None:
            assert used is None, "nothing is pending in the first round"
        else:
            assert torch.equal(used[1], expected[0]), "trained on in the next round"
            assert torch.equal(used[2], expected[1]), "with the labels of their own images"
        gradient = input_gradient(before, images, labels, "clean")
        made, made_labels = pending(adversary)
        # Bit for bit, with the step taken by the attack itself; the oracle rounds differently.
        assert torch.equal(made, ATTACK.ascend(images, images, gradient).images)
        torch.testing.assert_close(made, sign_step(images, gradient, EPSILON))
        assert torch.equal(made_labels, labels)
        expected = (made, made_labels)


def test_a_round_is_the_mean_over_clean_images_and_the_last_rounds_copies() -> None:
    """Weights after five rounds, with nothing of conadv but the routing."""
    model, oracle, data = network(), network(), batches(5)
    optimizer, left = sgd(oracle), None
    for images, labels in data:
        made = sign_step(images, input_gradient(oracle, images, labels, "clean"), EPSILON)
        with conadv.route(oracle, "clean"):
            loss = cross_entropy(oracle(images), labels)
        if left is None:
            absent = [p for n, p in oracle.named_parameters() if "norms.adversarial" in n]
            loss = loss + 0.0 * sum(p.sum() for p in absent)
        else:
            with conadv.route(oracle, "adversarial"):
                loss = 0.5 * loss + 0.5 * cross_entropy(oracle(left[0]), left[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left = (made, labels)
    run(conadv.Adversary(model, ATTACK, "recycled"), sgd(model), data)
    assert_same_state(model, oracle, rtol=1e-5, atol=1e-6)


def test_the_share_takes_the_first_images() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(share=0.25))
    for before, images, labels, _ in rounds(model, adversary, batches(2)):
        gradient = input_gradient(before, images, labels, "clean")  # statistics of all eight
        made, made_labels = pending(adversary)
        torch.testing.assert_close(made, sign_step(images, gradient, EPSILON)[:2])
        assert torch.equal(made_labels, labels[:2])
    assert adversary.diagnostics.images == 10


def test_the_loss_factor_changes_no_copy() -> None:
    made = []
    for fraction in (1.0, 0.125):
        adversary = conadv.Adversary(network(), ATTACK, "recycled")
        adversary.loss(*batches(1)[0], cross_entropy, fraction=fraction).backward()
        adversary.collect()
        made.append(pending(adversary)[0])
    assert torch.equal(*made)


def test_an_l2_step_follows_the_gradient_in_pixels() -> None:
    model, (images, labels) = network(), batches(1)[0]
    attack = conadv.Attack(0.05, mean=MEAN, std=STD, norm="l2", pixel_range=None)
    adversary = conadv.Adversary(model, attack, "recycled")
    std = torch.tensor(STD).view(1, 3, 1, 1)
    gradient = input_gradient(model, images, labels, "clean") / std
    gradient /= gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    torch.testing.assert_close(pending(adversary)[0], images + 0.05 * gradient / std)


def test_labels_and_images_that_the_loader_fills_anew_are_kept() -> None:
    model, data = network(), batches(1)
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=2))
    images, labels = (t.clone() for t in data[0])
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    images.zero_()
    labels.zero_()
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    assert torch.equal(adversary.preview[0], data[0][0][:4])
    assert torch.equal(adversary.preview[2], data[0][1][:4])


def test_micro_batches_of_a_step_are_attacked_with_its_weights() -> None:
    """Accumulation: copies of micro-batch i are trained on in i + 1, and are not stale."""
    model, data = network(), batches(6)
    adversary = conadv.Adversary(model, ATTACK, "recycled", track_agreement=True)
    optimizer, agreements, images_used = sgd(model, lr=1.0), [], []
    for number, (images, labels) in enumerate(data):
        adversary.preview = None
        adversary.loss(images, labels, cross_entropy, fraction=1 / 3).backward()
        adversary.collect()
        if adversary.preview is not None:
            images_used.append(torch.equal(adversary.preview[0], data[number - 1][0]))
            agreements.append(adversary.diagnostics.agreement.item())
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert images_used == [True] * 5
    # The third of them crosses the update.
    assert [a == pytest.approx(1) for a in agreements] == [True, True, False, True, True]
    assert agreements[2] < 0.99


def test_skip_drops_the_copies() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    optimizer = sgd(model)
    run(adversary, optimizer, batches(2))
    adversary.loss(*batches(1)[0], lambda o, y: cross_entropy(o, y) * float("nan"))
    adversary.skip()
    assert pending(adversary) == []
    assert adversary.images == 16, "the void round's images were not trained on"
    assert adversary.compute == 8 + 16 + 16, "but its passes were paid for"
    run(adversary, optimizer, batches(1))
    assert adversary.diagnostics.adversarial_loss is None


# -- what a recycled gradient cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"target": "random"}, r"target='random'.*labels are the true ones.*untargeted.*lookahead"),
        ({"branch": "adversarial"}, r"branch='adversarial'.*goes through 'clean'.*lookahead"),
        ({"mode": "eval"}, r"mode='eval'.*runs in training mode.*lookahead"),
        ({"random_start": 0.8}, r"random_start=0.8.*at the images themselves.*lookahead"),
        ({"steps": 3}, r"steps=3.*one gradient.*Recycled\(refine=3\)"),
    ],
)
def test_attacks_it_cannot_serve_are_refused_with_the_reason(setting, reason) -> None:
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, **setting)
    with pytest.raises(ValueError, match=reason):
        conadv.Adversary(network(), attack, "recycled")
    conadv.Adversary(network(), attack, "sequential")  # the remedy is one


@pytest.mark.parametrize("setting", [{"branch": "clean"}, {"mode": "train"}, {}])
def test_attacks_that_say_what_it_does_anyway_are_taken(setting) -> None:
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, **setting)
    assert conadv.Adversary(network(), attack, "recycled").attack.branch == "clean"


@pytest.mark.parametrize("weight", [1.0, 1, conadv.PiecewiseLinear([(0.0, 0.5), (1.0, 1.0)])])
def test_a_weight_that_leaves_nothing_to_the_clean_loss_is_refused(weight) -> None:
    """Its gradient would be zero, and sign(0) = 0: no attack at all, without a word."""
    with pytest.raises(ValueError, match=r"weight=1.*gradient of the clean loss"):
        conadv.Recycled(weight=weight)
    conadv.Sequential(weight=weight)


def test_the_gradient_survives_a_small_clean_weight() -> None:
    model, (images, labels) = network(), batches(1)[0]
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(weight=0.999))
    for _ in range(2):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    assert adversary.diagnostics.zero_share < 0.05


def test_without_batch_norm_the_branch_means_nothing() -> None:
    model = network(norm=False)
    adversary = conadv.Adversary(model, ATTACK, "recycled", track_agreement=True)
    images, labels = batches(1)[0]
    for _ in range(2):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
    assert adversary.diagnostics.agreement == pytest.approx(1)


def test_soft_labels_travel_with_their_copies() -> None:
    model = network()
    data = [(x, nn.functional.one_hot(y, CLASSES).float().softmax(1)) for x, y in batches(2)]
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    run(adversary, sgd(model), data)
    assert torch.equal(adversary.preview[2], data[0][1])

"""The control: random signs of the same epsilon, which no gradient has seen."""

import pytest
import torch

import conadv
from support.loops import ATTACK, EPSILON, MEAN, STD, batches, cross_entropy, network, run, sgd

FREE = conadv.Attack(EPSILON, mean=MEAN, std=STD, pixel_range=None)


def copies_of(model, attack=FREE, seed=0, size=32, criterion=cross_entropy):
    adversary = conadv.Adversary(model, attack, "noise", seed=seed)
    images, labels = batches(1, size=size)[0]
    adversary.loss(images, labels, criterion).backward()
    adversary.collect()
    std = torch.tensor(STD).view(1, 3, 1, 1)
    origins, copies, _ = adversary.preview
    return (copies - origins) * std / EPSILON


def test_every_pixel_moves_by_epsilon_and_signs_are_balanced() -> None:
    signs = copies_of(network())
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=1e-4, atol=1e-4)
    assert signs.mean().abs() < 4 / signs.numel() ** 0.5
    across = (signs[:8].sign() * signs[8:].sign()).mean()
    assert across.abs() < 4 / (signs.numel() / 2) ** 0.5


def test_it_knows_nothing_of_the_gradient() -> None:
    model = network()
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(-1)
    one = copies_of(model)
    assert torch.equal(one, copies_of(other))
    assert torch.equal(one, copies_of(model, criterion=lambda o, y: -cross_entropy(o, y)))
    assert not torch.equal(one, copies_of(model, seed=1))


def test_it_stays_in_the_pixel_range() -> None:
    adversary = conadv.Adversary(network(), ATTACK, "noise")
    images, labels = batches(1)[0]
    adversary.loss(images, labels, cross_entropy)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    pixels = adversary.preview[1] * std + mean
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


def test_l2_noise_has_the_length_epsilon() -> None:
    attack = conadv.Attack(0.5, mean=MEAN, std=STD, norm="l2", pixel_range=None)
    lengths = (copies_of(network(), attack) * EPSILON).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=1e-4, atol=1e-4)


def test_it_is_new_in_every_round_and_costs_no_attack() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, conadv.Noise(share=0.5))
    optimizer, data, moved = sgd(model), batches(1), []
    for _ in range(2):
        run(adversary, optimizer, data)
        moved.append(adversary.preview[1] - adversary.preview[0])
    assert not torch.equal(*moved)
    assert adversary.diagnostics.compute == 12
    assert adversary.diagnostics.zero_share is None


def test_its_agreement_with_an_attack_is_chance() -> None:
    adversary = conadv.Adversary(network(), FREE, "noise", track_agreement=True)
    images, labels = batches(1, size=64)[0]
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    assert adversary.diagnostics.agreement.abs() < 4 / images.numel() ** 0.5
    assert adversary.diagnostics.compute == pytest.approx(64 * (2 + 2 / 3))

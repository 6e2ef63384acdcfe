"""DisAdv: attack with the current weights, then train on both. Oracle: the step written out."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    EPSILON,
    assert_same_state,
    batches,
    cross_entropy,
    input_gradient,
    network,
    run,
    sgd,
    sign_step,
)


class ByHand(nn.Module):
    """The network of `support.loops` without conadv: two sets of norm layers, chosen by hand."""

    def __init__(self, start: nn.Module) -> None:
        super().__init__()
        start = copy.deepcopy(conadv.plain(start))
        self.first, self.second, self.head = start[0], start[3], start[8]
        self.norms = nn.ModuleDict(
            {b: nn.ModuleList(copy.deepcopy([start[1], start[4]])) for b in ("clean", "adv")}
        )

    def forward(self, x, branch):
        for conv, layer in zip((self.first, self.second), self.norms[branch], strict=True):
            x = layer(conv(x)).relu()
        return self.head(x.flatten(1))


def disadv_step(model, optimizer, images, labels):
    tracking = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in tracking:
        layer.track_running_stats = False
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(leaf, "adv"), labels), leaf)
    for layer in tracking:
        layer.track_running_stats = True
    copies = sign_step(images, gradient, EPSILON)
    loss = cross_entropy(model(images, "clean"), labels)
    loss = 0.5 * loss + 0.5 * cross_entropy(model(copies, "adv"), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_equals_a_step_written_out() -> None:
    model, data = network(), batches(5)
    oracle = ByHand(model)
    optimizer = sgd(oracle)
    for images, labels in data:
        disadv_step(oracle, optimizer, images, labels)
    run(conadv.Adversary(model, ATTACK, "sequential"), sgd(model), data)
    for branch, name in (("clean", "clean"), ("adv", "adversarial")):
        found = conadv.plain(model, name)
        expected = [oracle.first, oracle.norms[branch][0], oracle.second, oracle.norms[branch][1]]
        for layer, wanted in zip((found[0], found[1], found[3], found[4]), expected, strict=True):
            assert_same_state(layer, wanted, rtol=1e-5, atol=1e-6)
        assert_same_state(found[8], oracle.head, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("branch", [None, "clean"])
def test_copies_are_of_this_rounds_images_at_the_current_weights(branch: str | None) -> None:
    model = network()
    attack = conadv.Attack(EPSILON, mean=ATTACK.mean, std=ATTACK.std, branch=branch)
    adversary = conadv.Adversary(model, attack, conadv.Sequential(share=0.5))
    optimizer = sgd(model)
    for images, labels in batches(3):
        # Statistics are taken over the images that are attacked: the first half.
        gradient = input_gradient(model, images[:4], labels[:4], branch or "adversarial")
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        origins, copies, copied = adversary.preview
        torch.testing.assert_close(copies, sign_step(images[:4], gradient, EPSILON))
        assert torch.equal(origins, images[:4]) and torch.equal(copied, labels[:4])
        assert adversary.diagnostics.images == 12
        optimizer.step()


def test_nothing_is_pending() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "sequential")
    run(adversary, sgd(model), batches(2))
    assert adversary.state_dict()["state"] == {}


def test_an_attack_of_several_steps_is_pgd() -> None:
    model, (images, labels) = network(), batches(1)[0]
    attack = conadv.Attack(EPSILON, mean=ATTACK.mean, std=ATTACK.std, steps=3)
    adversary = conadv.Adversary(model, attack, "sequential")
    expected = images
    for _ in range(3):
        gradient = input_gradient(model, expected, labels, "adversarial")
        expected = sign_step(expected, gradient, 2.5 * EPSILON / 3, origin=images)
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    torch.testing.assert_close(adversary.preview[1], expected)
    assert adversary.diagnostics.compute == pytest.approx(8 * (2 + 3 * 2 / 3))

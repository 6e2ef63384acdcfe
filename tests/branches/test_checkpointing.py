"""Activation checkpointing runs the forward again in the backward: with the same routing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import conadv
from support.nets import conv_net, images, perturb_norms, twin

MIXED = [("clean", 5), ("adversarial", 3)]


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant, kind="whole"):
        super().__init__()
        self.body, self.reentrant, self.kind = body, reentrant, kind

    def forward(self, x):
        if self.kind == "sequential":
            return checkpoint_sequential(self.body, 3, x, use_reentrant=self.reentrant)
        if self.kind == "nested":
            return checkpoint(self.nested, x, use_reentrant=self.reentrant)
        if self.kind == "tail":
            return checkpoint(self.body[1:], self.body[0](x), use_reentrant=self.reentrant)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)

    def nested(self, x):
        x = checkpoint(self.body[:5], x, use_reentrant=self.reentrant)
        return self.body[5:](x)


def pair(reentrant, kind="whole", **options):
    """A split network and its checkpointed twin."""
    body = perturb_norms(conadv.split_norms(conv_net(), **options))
    for module in body.modules():  # running statistics are updated twice: leave them out
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0
    return body, Checkpointed(twin(body), reentrant, kind)


def assert_same_gradients(plain, checkpointed):
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, msg=name)


def inputs():
    return images().requires_grad_()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["whole", "sequential", "nested"])
@pytest.mark.parametrize("layout", ["adversarial", MIXED, None], ids=str)
@pytest.mark.parametrize("statistics", ["separate", "affine"])
def test_a_routed_forward_is_recomputed_alike(reentrant, kind, layout, statistics):
    plain, checkpointed = pair(reentrant, kind, statistics=statistics)
    x = inputs()
    for model in (plain, checkpointed):
        with conadv.route(model, layout):
            outputs = model(x)
        outputs.square().sum().backward()
    assert_same_gradients(plain, checkpointed)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_without_routing_after_one_with(reentrant):
    """The plain forward must not be recomputed with the layout of the routed one before."""
    plain, checkpointed = pair(reentrant)
    x = inputs()
    for model in (plain, checkpointed):
        with conadv.route(model, "adversarial"), torch.no_grad():
            model(x)
        model(x).square().sum().backward()
    assert_same_gradients(plain, checkpointed)


def test_an_attack_between_forward_and_backward():
    plain, checkpointed = pair(False)
    x, labels = inputs(), torch.arange(8) % 5
    attack = conadv.Attack(0.1, branch="adversarial")
    copies = []
    for model in (plain, checkpointed):
        with conadv.route(model, MIXED):
            outputs = model(x)
        copies.append(attack(model, x, labels, nn.functional.cross_entropy))
        outputs.square().sum().backward()
    assert_same_gradients(plain, checkpointed)
    assert torch.equal(*copies)


def test_two_forwards_of_different_routing_and_one_backward():
    """Only possible without reentrant autograd: each checkpoint remembers its own layout."""
    plain, checkpointed = pair(False, "sequential")
    x = inputs()
    for model in (plain, checkpointed):
        with conadv.route(model, "clean"):
            one = model(x)
        with conadv.route(model, MIXED):
            two = model(x * 0.5)
        three = model(x * 0.25)
        (one.sin().sum() + 2 * two.cos().sum() + 3 * three.square().sum()).backward()
    assert_same_gradients(plain, checkpointed)


def test_a_backward_inside_another_block():
    plain, checkpointed = pair(False)
    x = inputs()
    for model in (plain, checkpointed):
        with conadv.route(model, "adversarial"):
            outputs = model(x)
        with conadv.route(model, "clean"):
            outputs.square().sum().backward()
            assert model is plain or model.body[1].router.layout == (("clean", -1),)
    assert_same_gradients(plain, checkpointed)
    assert checkpointed.body[1].router.layout is None


def test_reentrant_checkpointing_refuses_an_attack_by_torch_s_own_rule():
    """The backward before is not disturbed: the layout to recompute is still its own."""
    plain, checkpointed = pair(True)
    x, labels = inputs(), torch.arange(8) % 5
    for model in (plain, checkpointed):
        with conadv.route(model, MIXED):
            outputs = model(x)
        if model is checkpointed:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                conadv.Attack(0.1)(model, x, labels, nn.functional.cross_entropy)
        outputs.square().sum().backward()
    assert_same_gradients(plain, checkpointed)


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_the_adversary_trains_a_checkpointed_model(forward):
    """Recycled: two parts in one loss, in one forward or in two."""
    plain, checkpointed = pair(False, "sequential")
    for model in (plain, checkpointed):
        adversary = conadv.Adversary(model, conadv.Attack(0.1), "recycled", forward=forward)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            x = torch.rand(4, 3, 8, 8, generator=generator)
            adversary.loss(x, torch.arange(4), nn.functional.cross_entropy).backward()
            adversary.collect()
    assert_same_gradients(plain, checkpointed)


def test_separate_forwards_and_reentrant_checkpointing_are_refused():
    """Which of the two forwards is run again cannot be known: an error, not a wrong gradient."""
    _, checkpointed = pair(True, "tail")
    adversary = conadv.Adversary(checkpointed, conadv.Attack(0.1), forward="separate")
    x = images(4)
    adversary.loss(x, torch.arange(4), nn.functional.cross_entropy).backward()
    adversary.collect()
    loss = adversary.loss(x, torch.arange(4), nn.functional.cross_entropy)
    with pytest.raises(RuntimeError, match="use_reentrant=False.*forward='joint'"):
        loss.backward()


def test_a_reentrant_checkpoint_after_two_branches_is_refused():
    """Which of the two forwards is run again cannot be told: a wrong gradient would be silent."""
    _, checkpointed = pair(True)
    x = inputs()
    outputs = []
    for branch in ("clean", "adversarial"):
        with conadv.route(checkpointed, branch):
            outputs.append(checkpointed(x).square().sum())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        sum(outputs).backward()


def test_a_reentrant_checkpoint_with_one_branch_after_another_trained():
    plain, checkpointed = pair(True)
    x = inputs()
    for model in (plain, checkpointed):
        for branch in ("clean", "adversarial"):
            with conadv.route(model, branch):
                outputs = model(x)
            outputs.square().sum().backward()
    assert_same_gradients(plain, checkpointed)


def test_a_new_round_of_an_adversary_forgets_forwards_that_nobody_ran_back():
    model = Checkpointed(perturb_norms(conadv.split_norms(conv_net())), True, "tail")
    adversary = conadv.Adversary(model, conadv.Attack(0.1, pixel_range=None), forward="joint")
    for _ in range(3):
        with conadv.route(model, "adversarial"):
            model(images())
        outputs = adversary.loss(images(), torch.zeros(8), lambda o, _: o.square().mean())
        outputs.backward()
        adversary.collect()

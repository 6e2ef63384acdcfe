"""Pairs that must agree: with a plain loop, one forward and two, micro-batches and the batch."""

import copy

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    SCHEDULES,
    assert_same_state,
    batches,
    concatenated,
    cross_entropy,
    network,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def in_double(data):
    return [(images.double(), labels) for images, labels in data]


# -- vanilla -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_vanilla_is_a_plain_loop_bit_for_bit(split: bool, forward: str) -> None:
    data = batches(5)
    plain, optimizer = network(split=False, dropout=0.3), None
    optimizer = sgd(plain)
    torch.manual_seed(0)
    for images, labels in data:
        cross_entropy(plain(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model = network(split=split, dropout=0.3)
    torch.manual_seed(0)
    run(conadv.Adversary(model, ATTACK, "vanilla", forward=forward), sgd(model), data)
    assert_same_state(conadv.plain(model), plain)


def test_vanilla_through_the_second_branch() -> None:
    model = network()
    adversary = conadv.Adversary(model, ATTACK, "vanilla", clean_branch="adversarial")
    run(adversary, sgd(model), batches(2))
    moved = [m.norms["clean"].num_batches_tracked.item() for m in model if hasattr(m, "norms")]
    assert moved == [0, 0]


# -- one forward and two -------------------------------------------------------------------------


@every_schedule
def test_one_concatenated_forward_equals_one_per_branch(make) -> None:
    nets = []
    for forward in ("joint", "separate"):
        model = network().double()
        adversary = conadv.Adversary(model, ATTACK, make(), forward=forward)
        run(adversary, sgd(model), in_double(batches(5)))
        nets.append(model)
    assert_same_state(*nets, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{"statistics": "affine"}, {"statistics": "shared"}, {}])
def test_auto_takes_separate_forwards_on_a_cpu_where_it_may(options) -> None:
    model = network(**options)
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    adversary = conadv.Adversary(model, ATTACK, "noise")
    adversary.loss(*batches(1)[0], cross_entropy)
    assert seen == ([16] if options else [8, 8])


def test_a_branch_without_images_gets_a_gradient_of_zero() -> None:
    """And only that: momentum, decay and step counts are those of a run on many devices."""
    for statistics in ("separate", "affine"):
        model = network(statistics=statistics)
        adversary = conadv.Adversary(model, ATTACK, "recycled")
        adversary.loss(*batches(1)[0], cross_entropy).backward()
        zero = {n for n, p in model.named_parameters() if not p.grad.any()}
        assert zero and all(".adversarial." in name for name in zero)
    model = network()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[8].weight.requires_grad_(True)
    conadv.Adversary(model, ATTACK, "vanilla").loss(*batches(1)[0], cross_entropy).backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["8.weight"]


# -- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "sequential"])
def test_accumulated_micro_batches_equal_the_whole_batch(name: str) -> None:
    """Where statistics are taken over groups of a stated size; ragged ones at the end too."""
    nets = []
    for sizes in ([12, 12, 6], [30], [6] * 5):
        model = network(group_size=6).double()
        adversary, optimizer = conadv.Adversary(model, ATTACK, name), sgd(model)
        for images, labels in in_double(batches(3, size=30)):
            micro = zip(images.split(sizes), labels.split(sizes), strict=True)
            for x, y in micro:
                adversary.loss(x, y, cross_entropy, fraction=len(x) / 30).backward()
                adversary.collect()
            optimizer.step()
            optimizer.zero_grad()
        nets.append(model)
    assert_same_state(nets[0], nets[1], rtol=1e-9, atol=1e-10)
    assert_same_state(nets[0], nets[2], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["vanilla", "sequential", "noise", "lookahead", "recycled"])
def test_a_ragged_last_micro_batch_weighs_each_of_its_images_alike(name: str) -> None:
    """Without batch norm, and with images of one class per micro-batch: a mean over images."""
    model = network(norm=False).double()
    data = in_double([*batches(2, size=6), *batches(1, size=2, seed=3)])
    adversary = conadv.Adversary(model, conadv.Attack(0.0), name)
    for images, labels in adversary.batches(data):
        adversary.loss(images, labels, cross_entropy, fraction=len(images) / 14).backward()
        adversary.collect()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    images, labels = concatenated(data)
    if name == "recycled":  # copies of the micro-batch before: by its own fraction, half and half
        parts = [(data[0], 6 / 14), (data[1], 3 / 14), (data[0], 3 / 14)]
        parts += [(data[2], 2 / 14 * 2 / 8), (data[1], 2 / 14 * 6 / 8)]
        loss = sum(w * cross_entropy(model(x), y) for (x, y), w in parts)
    else:
        loss = cross_entropy(model(images), labels)
    loss.backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])


# -- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_three_branches_are_a_third_each(forward: str) -> None:
    """The released run: crop, AutoAugment view of another crop, copies of the first."""
    model = network(branches=("clean", "augmented", "adversarial"))
    oracle, data, views = copy.deepcopy(model), batches(3), batches(3, seed=5)
    adversary = conadv.Adversary(model, ATTACK, "recycled", forward=forward)
    optimizer, left = sgd(model), None
    oracle_optimizer = sgd(oracle)
    for (images, labels), view in zip(data, views, strict=True):
        parts = [("clean", images, labels), ("augmented", *view)]
        if left is not None:
            parts.append(("adversarial", *left))
        losses = []
        for branch, x, y in parts:
            with conadv.route(oracle, branch):
                losses.append(cross_entropy(oracle(x), y))
        unused = [p for n, p in oracle.named_parameters() if "adversarial" in n]
        expected = sum(losses) / len(losses) + 0.0 * sum(p.sum() for p in unused)
        loss = adversary.loss(images, labels, cross_entropy, views={"augmented": view})
        torch.testing.assert_close(loss, expected)
        clean = sum(losses[:2]) / 2
        torch.testing.assert_close(adversary.diagnostics.clean_loss, clean.detach())
        assert adversary.diagnostics.images == 8 * len(parts)
        for one, step in ((loss, optimizer), (expected, oracle_optimizer)):
            one.backward()
            if one is loss:
                adversary.collect()
            step.step()
            step.zero_grad()
        left = [
            t.clone()
            for t in adversary.schedule._pending[0].state_dict().values()
            if torch.is_tensor(t)
        ][:2]
    assert_same_state(model, oracle, rtol=1e-4, atol=1e-5)


# -- other shapes of labels and outputs ----------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = network(), kind

    def forward(self, x):
        logits = self.body(x)
        extra = x.flatten(1)[:, :2] * 0.5
        return {"logits": logits, "extra": extra} if self.kind == "dict" else (logits, [extra])


@every_schedule
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_structured_outputs_go_to_the_criterion_row_by_row(make, kind: str) -> None:
    def criterion(outputs, labels):
        extra = outputs["extra"] if kind == "dict" else outputs[1][0]
        logits = outputs["logits"] if kind == "dict" else outputs[0]
        assert len(extra) == len(logits) == len(labels)
        return cross_entropy(logits, labels) + extra.square().mean()

    trained = []
    for forward in ("joint", "separate"):
        model = TwoHeads(kind).double()
        adversary = conadv.Adversary(model, ATTACK, make(), forward=forward)
        run(adversary, sgd(model), in_double(batches(4)), criterion)
        trained.append(model)
        outputs = adversary.diagnostics.outputs
        assert type(outputs) is (dict if kind == "dict" else tuple)
        assert len(outputs["logits"] if kind == "dict" else outputs[0]) == 8
    assert_same_state(*trained, rtol=1e-9, atol=1e-10)


@every_schedule
def test_mixup_as_two_label_vectors_and_a_coefficient(make) -> None:
    """Equal to the same mixture as soft labels."""
    order, lam = torch.arange(8).flip(0), torch.tensor(0.7)
    data = batches(4)
    mixed = [(x.lerp(x[order], 1 - lam), (y, y[order], lam)) for x, y in data]
    hot = [nn.functional.one_hot(y, CLASSES).float() for _, y in data]
    soft = [(x, h * lam + h[order] * (1 - lam)) for (x, _), h in zip(mixed, hot, strict=True)]

    def criterion(outputs, labels):
        first, second, share = labels
        return cross_entropy(outputs, first) * share + cross_entropy(outputs, second) * (1 - share)

    nets = []
    for loader, loss in ((mixed, criterion), (soft, cross_entropy)):
        model = network()
        adversary = conadv.Adversary(model, ATTACK, make())
        run(adversary, sgd(model, lr=0.01), loader, loss)
        nets.append(model)
    assert_same_state(*nets, rtol=1e-4, atol=1e-4)


def test_images_made_in_inference_mode() -> None:
    """As a loader that augments under inference_mode hands them over."""
    with torch.inference_mode():
        data = batches(3)
    for make in SCHEDULES.values():
        model = network()
        run(conadv.Adversary(model, ATTACK, make()), sgd(model), data)

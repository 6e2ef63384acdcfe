"""What an attack must leave as it found it, also when it fails half-way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conadv
from conadv import Attack


class OwnAverage(nn.Module):
    """Keeps a running mean by *assigning* the buffer, as many hand-written layers do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(dim=(0, 2, 3))
        return x - self.average.reshape(1, -1, 1, 1)


class OwnBatchNorm(nn.BatchNorm2d):
    """A subclass that updates its statistics whatever `track_running_stats` says."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1
        )


class Net(nn.Module):
    """Every kind of layer with a state of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3))
        self.bn = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6)
        self.instance = nn.InstanceNorm2d(6, track_running_stats=True)
        self.average = OwnAverage()
        self.own = OwnBatchNorm(6)
        self.cumulative = nn.BatchNorm2d(6, momentum=None)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.fails = False

    def forward(self, x):
        x = self.frozen(self.bn(self.conv(x)))
        x = self.cumulative(self.own(self.average(self.instance(x))))
        if self.fails:
            raise OSError("interrupted")
        return self.head(self.dropout(x.relu()).mean(dim=(2, 3)))


def make(split):
    model = Net()
    if split:
        model = conadv.split_norms(model)
    model.train()
    model.frozen.eval()
    model.head.bias.requires_grad_(False)
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    F.cross_entropy(model(images), labels).backward()  # grads and statistics that are not nought
    return model, images, labels


def snapshot(model):
    return {
        "buffers": {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "gradients": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "tracking": {
            n: m.track_running_stats
            for n, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._NormBase)
        },
        "routers": [
            (r.layout, r.last, list(r._blocks))
            for r in conadv.branches.branches.find_routers(model)
        ],
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    def flat(tree):
        if isinstance(tree, dict):
            return [item for key in sorted(tree) for item in flat(tree[key])]
        return [i for part in tree for i in flat(part)] if isinstance(tree, tuple) else [tree]

    assert before.keys() == after.keys()
    for key in before:
        one, two = flat(before[key]), flat(after[key])
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            assert same, key


VARIANTS = [
    {},
    {"mode": "eval"},
    {"mode": "train", "steps": 3, "random_start": 0.5},
    {"norm": "l2", "target": "random"},
    {"branch": "adversarial"},
]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_attack_leaves_no_trace(split, variant):
    model, images, labels = make(split)
    kept = images.clone()
    before = snapshot(model)
    copies = Attack(0.1, **variant)(model, images, labels, F.cross_entropy)
    assert_same(before, snapshot(model))
    assert torch.equal(images, kept)
    assert not copies.requires_grad
    assert copies.data_ptr() != images.data_ptr()
    assert not torch.equal(copies, images)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("culprit", ["model", "criterion", "interrupt"])
def test_nor_does_one_that_fails(split, mode, culprit):
    model, images, labels = make(split)

    def criterion(outputs, labels):
        if culprit == "interrupt":
            raise KeyboardInterrupt
        if culprit == "criterion":
            raise OSError("interrupted")
        return F.cross_entropy(outputs, labels)

    model.fails = culprit == "model"
    before = snapshot(model)
    error = KeyboardInterrupt if culprit == "interrupt" else OSError
    with pytest.raises(error):
        Attack(0.1, mode=mode, branch="adversarial")(model, images, labels, criterion)
    assert_same(before, snapshot(model))


def test_a_graph_made_before_the_attack_still_runs_backward():
    """Putting buffers back must not look like an in-place change to autograd."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.rand(5))
            self.weight = nn.Parameter(torch.rand(5))

        def forward(self, x):
            return x * self.weight * self.scale  # saves the buffer

    model = Scaled()
    images, labels = torch.rand(3, 5), torch.tensor([0, 1, 2])
    loss = F.cross_entropy(model(images), labels)
    Attack(0.1)(model, images, labels, F.cross_entropy)
    loss.backward()
    assert model.weight.grad is not None


def test_train_mode_attacks_through_batch_statistics_and_eval_mode_through_running_ones():
    images, labels = torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.2, 5)

    def by_hand(training):
        twin = copy.deepcopy(model).train(training)
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin(leaf), labels), leaf)
        return (images + 0.1 * gradient.sign()).clamp(0, 1)

    for mode, training in (("train", True), ("eval", False), (None, True)):
        got = Attack(0.1, mode=mode)(model.train(), images, labels, F.cross_entropy)
        torch.testing.assert_close(got, by_hand(training), atol=1e-6, rtol=0)
    assert not torch.equal(by_hand(True), by_hand(False))
    # A model in eval mode is attacked as it stands.
    got = Attack(0.1)(model.eval(), images, labels, F.cross_entropy)
    torch.testing.assert_close(got, by_hand(False), atol=1e-6, rtol=0)


def test_dropout_is_on_in_train_mode_and_off_in_eval_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 4)).train()
    images, labels = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long)

    def moved(mode, seed):
        generator = torch.Generator().manual_seed(seed)
        attack = Attack(0.01, mode=mode)
        return attack(model, images, labels, F.cross_entropy, generator=generator) != images

    share = float(moved("train", 0).float().mean())
    assert 0.35 < share < 0.65  # a dropped pixel has no gradient
    assert not torch.equal(moved("train", 0), moved("train", 1))
    assert float(moved("eval", 0).float().mean()) > 0.95


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_memory_format_is_kept(variant):
    model, images, labels = make(True)
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    copies = Attack(0.1, (0.5,) * 3, (0.3,) * 3, **variant)(model, images, labels, F.cross_entropy)
    assert copies.stride() == images.stride()
    noisy = Attack(0.1).noise(images, torch.Generator())
    assert noisy.stride() == images.stride()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(context):
    model, images, labels = make(False)
    attack = Attack(0.1, mode="eval")
    want = attack(model, images, labels, F.cross_entropy)
    with context():
        got = attack(model, images.clone(), labels.clone(), F.cross_entropy)
        assert torch.equal(got, want)


def test_the_attack_goes_through_the_branch_it_names():
    images, labels = torch.rand(8, 5), torch.arange(8) % 5
    model = conadv.split_norms(nn.Sequential(nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5)))
    nn.init.normal_(model[0].norms["adversarial"].weight)
    nn.init.normal_(model[0].norms["clean"].weight)
    for branch in ("clean", "adversarial", None):
        got = Attack(0.05, branch=branch)(model, images, labels, F.cross_entropy)
        want = Attack(0.05)(conadv.plain(model, branch), images, labels, F.cross_entropy)
        assert torch.equal(got, want)
    # An attack inside a routing block goes where the attack says.
    with conadv.route(model, "clean"):
        got = Attack(0.05, branch="adversarial")(model, images, labels, F.cross_entropy)
        assert model[0].router.layout == (("clean", -1),)
    want = Attack(0.05)(conadv.plain(model, "adversarial"), images, labels, F.cross_entropy)
    assert torch.equal(got, want)

"""split_norms: which layers are converted, what is kept, what is refused."""

import copy
import inspect
import pickle

import pytest
import timm.layers
import torch
from torch import nn

import conadv
from conadv.branches.branches import SplitNorm
from support.nets import NAMES, conv_net, images, perturb_norms


class Subclass(nn.BatchNorm2d):
    """Adds an activation of its own, like many a fused layer."""

    def forward(self, x):
        return super().forward(x).relu()


LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "1d-sequence": (lambda: nn.BatchNorm1d(4), (6, 4, 5)),
    "2d": (lambda: nn.BatchNorm2d(4), (6, 4, 3, 3)),
    "3d": (lambda: nn.BatchNorm3d(4), (6, 4, 2, 3, 3)),
    "sync": (lambda: nn.SyncBatchNorm(4), (6, 4, 3, 3)),
    "timm": (lambda: timm.layers.BatchNormAct2d(4), (6, 4, 3, 3)),
    "timm-drop": (
        lambda: timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=nn.Tanh, inplace=False),
        (6, 4, 3, 3),
    ),
    "subclass": (lambda: Subclass(4), (6, 4, 3, 3)),
    "no-affine": (lambda: nn.BatchNorm2d(4, affine=False), (6, 4, 3, 3)),
    "no-running": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 3, 3)),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (6, 4, 3, 3)),
    "no-momentum": (lambda: nn.BatchNorm2d(4, momentum=0.0), (6, 4, 3, 3)),
}
if "bias" in inspect.signature(nn.BatchNorm2d).parameters:  # not in older releases of torch
    LAYERS["no-bias"] = (lambda: nn.BatchNorm2d(4, bias=False), (6, 4, 3, 3))
STATISTICS = ("separate", "affine", "shared")
layers = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **options):
    """A layer, its split twin whose second branch differs, and an input."""
    build, shape = LAYERS[kind]
    layer = perturb_norms(build())
    split = conadv.split_norms(copy.deepcopy(layer), **options)
    for module in (*split.norms.values(), *split.affines.values()):
        if module is not split.norms["clean"]:
            perturb_norms(module, seed=1)
    return layer, split, torch.randn(shape)


@layers
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("training", [True, False])
def test_each_branch_is_the_plain_layer_bit_for_bit(kind, statistics, training):
    _, split, x = make(kind, statistics=statistics)
    split.train(training)
    for branch in NAMES:
        plain = conadv.plain(split, branch)
        assert type(plain) is type(split.norms["clean"])
        want = plain(x)
        with conadv.route(split, branch):
            got = split(x)
        assert torch.equal(got, want)
        source = split.norms[branch if branch in split.norms else "clean"]
        for key, value in plain.named_buffers():
            assert torch.equal(source.get_buffer(key), value), key


@layers
def test_a_mixed_batch_is_two_plain_layers(kind):
    """Separate statistics: outputs, gradients and running statistics of separate forwards."""
    _, split, x = make(kind)
    split.train()
    plain = {branch: conadv.plain(split, branch) for branch in NAMES}
    mixed, apart = x.clone().requires_grad_(), x.clone().requires_grad_()
    with conadv.route(split, [("clean", 4), ("adversarial", 2)]):
        got = split(mixed)
    want = torch.cat([plain["clean"](apart[:4]), plain["adversarial"](apart[4:])])
    assert torch.equal(got, want)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(mixed.grad, apart.grad)
    for branch in NAMES:
        for key, value in plain[branch].named_parameters():
            torch.testing.assert_close(split.norms[branch].get_parameter(key).grad, value.grad)
        for key, value in plain[branch].named_buffers():
            assert torch.equal(split.norms[branch].get_buffer(key), value)


@layers
@pytest.mark.parametrize("training", [True, False])
def test_separate_affine_over_shared_statistics(kind, training):
    """Row i of a mixed batch is row i of the whole batch through a plain layer of its branch."""
    _, split, x = make(kind, statistics="affine")
    split.train(training)
    plain = {branch: conadv.plain(split, branch) for branch in NAMES}
    mixed, apart = x.clone().requires_grad_(), x.clone().requires_grad_()
    with conadv.route(split, [("adversarial", 2), ("clean", 4)]):
        got = split(mixed)
    want = torch.cat([plain["adversarial"](apart)[:2], plain["clean"](apart)[2:]])
    torch.testing.assert_close(got, want)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(mixed.grad, apart.grad, atol=1e-5, rtol=1e-5)
    for key, value in plain["clean"].named_parameters():
        mine = split.norms["clean"].get_parameter(key).grad
        torch.testing.assert_close(mine, value.grad, atol=1e-5, rtol=1e-5)
        if "adversarial" in split.affines:
            mine = split.affines["adversarial"].get_parameter(key).grad
            wanted = plain["adversarial"].get_parameter(key).grad
            torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    # One batch is one update, however many branches it has.
    for key, value in plain["clean"].named_buffers():
        torch.testing.assert_close(split.norms["clean"].get_buffer(key), value)


@layers
def test_shared_is_the_ordinary_layer(kind):
    layer, split, x = make(kind, statistics="shared")
    with conadv.route(split, [("adversarial", 2), ("clean", 4)]):
        got = split(x)
    assert torch.equal(got, layer(x))
    assert len(list(split.parameters())) == len(list(layer.parameters()))


def test_branches_begin_as_copies_and_pretrained_outputs_are_kept():
    model = perturb_norms(conv_net()).eval()
    x = images()
    want = model(x)
    split = conadv.split_norms(model, ("one", "two", "three"))
    assert split is model
    assert conadv.branch_names(split) == ("one", "two", "three")
    for branch in conadv.branch_names(split):
        with conadv.route(split, branch):
            assert torch.equal(split(x), want)
    assert torch.equal(split(x), want)
    storages = {p.data_ptr() for p in split.parameters()}
    assert len(storages) == len(list(split.parameters()))


def test_flags_of_the_layer_are_kept():
    model = conv_net().train()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    for statistics in ("separate", "affine"):
        split = conadv.split_norms(copy.deepcopy(model), statistics=statistics)
        assert not split[1].training
        assert split[4].training
        assert not any(m.training for m in split[1].norms.values())
        weights = [p for n, p in split[1].named_parameters() if n.endswith("weight")]
        assert len(weights) == 2
        assert not any(p.requires_grad for p in weights)
        assert all(p.requires_grad for n, p in split[1].named_parameters() if n.endswith("bias"))


def test_code_that_knows_the_layer_by_its_attributes():
    split = conadv.split_norms(conv_net())[1]
    assert split.num_features == 6
    assert split.eps == 1e-5
    assert split.weight is split.norms["clean"].weight
    assert not hasattr(split, "no_such_attribute")
    assert "clean, adversarial" in repr(split)


def test_a_layer_in_two_places_stays_one():
    norm = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(nn.Linear(4, 4), norm), "c": norm})
    parameters = len(list(model.parameters()))
    conadv.split_norms(model)
    assert model["a"] is model["b"][1]
    assert model["a"] is model["c"]
    assert len(list(model.parameters())) == parameters + 2
    plain = conadv.plain(model, "adversarial")
    assert plain["a"] is plain["b"][1]
    assert type(plain["a"]) is nn.BatchNorm1d


def test_a_model_that_is_a_norm_and_one_without_any():
    split = conadv.split_norms(nn.BatchNorm1d(3))
    assert isinstance(split, SplitNorm)
    assert type(conadv.plain(split, "adversarial")) is nn.BatchNorm1d
    linear = nn.Linear(3, 2)
    assert conadv.split_norms(linear) is linear
    assert conadv.branch_names(linear) == ()
    with conadv.route(linear, [("anything", 5)]):
        linear(torch.rand(4, 3))
    assert torch.equal(conadv.plain(linear, "anything").weight, linear.weight)


def test_layer_norms_only_on_request():
    def build():
        return nn.Sequential(
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.GroupNorm(2, 4),
            nn.RMSNorm(4),
            timm.layers.RmsNorm(4),
        )

    assert conadv.branch_names(conadv.split_norms(build())) == ()
    assert (
        conadv.branch_names(conadv.split_norms(build(), statistics="shared", layer_norm=True)) == ()
    )
    for statistics in ("separate", "affine"):
        split = conadv.split_norms(perturb_norms(build()), statistics=statistics, layer_norm=True)
        assert [type(layer) for layer in split[1:]] == [SplitNorm] * 4
        for layer in split[1:]:
            perturb_norms(layer.norms["adversarial"], seed=1)
        x = torch.randn(6, 4)
        with conadv.route(split, [("clean", 4), ("adversarial", 2)]):
            got = split(x)
        want = [
            conadv.plain(split, branch)(part)
            for branch, part in zip(NAMES, x.split([4, 2]), strict=True)
        ]
        torch.testing.assert_close(got, torch.cat(want))


@pytest.mark.parametrize("move", [torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double])
def test_conversion_before_a_change_of_type(move):
    dtype = move(torch.zeros(1)).dtype
    split = conadv.split_norms(conv_net()).to(dtype).eval()
    assert {p.dtype for p in split.parameters()} == {dtype}
    with conadv.route(split, [("clean", 4), ("adversarial", 4)]):
        assert split(images().to(dtype)).dtype == dtype


@pytest.mark.parametrize("statistics", STATISTICS)
def test_channels_last_stays_channels_last(statistics):
    split = conadv.split_norms(nn.BatchNorm2d(6), statistics=statistics)
    split = split.to(memory_format=torch.channels_last)
    x = torch.rand(8, 6, 4, 4).to(memory_format=torch.channels_last)
    for layout in ("adversarial", [("clean", 5), ("adversarial", 3)]):
        with conadv.route(split, layout):
            assert split(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_state_dict_deepcopy_and_pickle(statistics):
    split = perturb_norms(conadv.split_norms(conv_net(), statistics=statistics)).eval()
    fresh = conadv.split_norms(conv_net(), statistics=statistics).eval()
    fresh.load_state_dict(split.state_dict())
    x = images()
    with conadv.route(split, "adversarial"):
        want = split(x)
        # A copy made inside a block is not routed by it.
        copies = [fresh, copy.deepcopy(split), pickle.loads(pickle.dumps(split))]
    for other in copies:
        assert other[1].router is not split[1].router
        assert other[1].router is other[4].router
        assert other[1].router.layout is None
        with conadv.route(other, "adversarial"):
            assert torch.equal(other(x), want)
        assert torch.equal(other(x), conadv.plain(split)(x))


def test_a_plain_checkpoint_is_loaded_before_the_split():
    pretrained = perturb_norms(conv_net()).eval()
    model = conv_net().eval()
    model.load_state_dict(pretrained.state_dict())
    conadv.split_norms(model)
    x = images()
    for branch in NAMES:
        with conadv.route(model, branch):
            assert torch.equal(model(x), pretrained(x))


@pytest.mark.parametrize("statistics", ["separate", "affine"])
def test_tied_affine_parameters_stay_tied_in_every_branch(statistics):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    net[3].weight = net[1].weight
    conadv.split_norms(net, statistics=statistics)
    first, second = net[1].trainable(), net[3].trainable()
    for branch in ("clean", "adversarial"):
        assert first[branch][0] is second[branch][0], branch
        assert first[branch][1] is not second[branch][1], "the biases were two"
    assert first["clean"][0] is not first["adversarial"][0]
    restored = conadv.plain(net, "adversarial")
    assert restored[1].weight is restored[3].weight

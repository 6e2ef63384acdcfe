"""plain(): the ordinary model, with the keys, types and outputs that it had."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

import conadv
from conadv.branches.branches import SplitNorm
from support.loops import ATTACK, batches, network, run, sgd
from support.nets import NAMES, conv_net, images, perturb_norms

MODELS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), 32),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3, memory_efficient=True),
        32,
    ),
    "efficientnet": (  # BatchNormAct2d
        lambda: timm.create_model("test_efficientnet", num_classes=3),
        32,
    ),
    "vit": (lambda: timm.create_model("test_vit", num_classes=3, img_size=32), 32),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=3), 32),
}


def build(name):
    torch.manual_seed(0)
    model, size = MODELS[name]
    return perturb_norms(model()).eval(), torch.randn(2, 3, size, size)


@pytest.mark.parametrize(
    ("name", "layer_norm"),
    [*((name, False) for name in MODELS), ("vit", True), ("convnext", True)],
)
@pytest.mark.parametrize("statistics", ["separate", "affine", "shared"])
def test_every_branch_comes_back_bit_for_bit(name, layer_norm, statistics):
    original, x = build(name)
    options = {"statistics": statistics, "layer_norm": layer_norm, "group_size": 4}
    split = conadv.split_norms(copy.deepcopy(original), **options)
    converted = any(isinstance(module, SplitNorm) for module in split.modules())
    norms = (nn.LayerNorm, nn.GroupNorm) if layer_norm and statistics != "shared" else ()
    norms = (nn.modules.batchnorm._BatchNorm, *norms)
    assert converted == any(isinstance(module, norms) for module in original.modules())
    for module in split.modules():
        if isinstance(module, SplitNorm):
            for branch in NAMES[1:]:
                for part in (module.norms, module.affines):
                    if branch in part:
                        perturb_norms(part[branch], seed=1)
    before = {key: value.clone() for key, value in split.state_dict().items()}
    with torch.no_grad():
        for branch in NAMES:
            plain = conadv.plain(split, branch)
            with conadv.route(split, branch):
                assert torch.equal(plain(x), split(x))
            assert plain.state_dict().keys() == original.state_dict().keys()
            kinds = [(n, type(m)) for n, m in original.named_modules()]
            assert [(n, type(m)) for n, m in plain.named_modules()] == kinds
            flags = [m.training for m in original.modules()]
            assert [m.training for m in plain.modules()] == flags
            original_like = copy.deepcopy(original)
            original_like.load_state_dict(plain.state_dict())
            assert torch.equal(original_like(x), plain(x))
        assert torch.equal(conadv.plain(split)(x), original(x))  # first branch: never changed
    # The split model is untouched, and shares nothing with the copy.
    with torch.no_grad():
        for value in plain.state_dict().values():
            value.zero_()
    assert split.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in split.state_dict().items())


def test_the_second_branch_differs_where_it_has_something_of_its_own():
    """The test above would pass if every branch were the first."""
    original, x = build("resnet18")
    for statistics, differs in (("separate", True), ("affine", True), ("shared", False)):
        split = conadv.split_norms(copy.deepcopy(original), statistics=statistics)
        for module in split.modules():
            if isinstance(module, SplitNorm):
                perturb_norms(module.norms, seed=1)
                perturb_norms(module.affines, seed=2)
                if statistics == "separate":
                    perturb_norms(module.norms["adversarial"], seed=2)
        outputs = [conadv.plain(split, branch)(x) for branch in NAMES]
        assert torch.equal(*outputs) != differs


def test_wrappers_and_unsplit_models():
    split = perturb_norms(conadv.split_norms(conv_net())).eval()
    want = conadv.plain(split, "adversarial")
    compiled = torch.compile(split, backend="eager")
    got = conadv.plain(compiled, "adversarial")
    assert type(got) is nn.Sequential
    x = images()
    assert torch.equal(got(x), want(x))
    data_parallel = nn.DataParallel(split)
    assert list(conadv.plain(data_parallel).state_dict()) == list(want.state_dict())
    again = conadv.plain(want)
    assert again is not want
    assert torch.equal(again(x), want(x))


def test_an_unknown_branch():
    with pytest.raises(ValueError, match=r"branch='noisy'.*clean, adversarial"):
        conadv.plain(conadv.split_norms(conv_net()), "noisy")


def test_plain_then_split_anew():
    model = conadv.split_norms(conadv.plain(conadv.split_norms(conv_net())), ("a", "b"))
    assert conadv.branch_names(model) == ("a", "b")


def test_plain_inside_a_block_is_not_routed():
    split = perturb_norms(conadv.split_norms(conv_net())).eval()
    x = images()
    with conadv.route(split, "adversarial"):
        plain = conadv.plain(split, "clean")
        assert torch.equal(plain(x), conadv.plain(split)(x))
        assert not torch.equal(plain(x), split(x))


@pytest.mark.slow
def test_a_network_trained_in_the_loop_as_onnx(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra onnx")
    pytest.importorskip("onnxscript", reason="extra onnx")
    data = batches(4)
    model = network()
    run(conadv.Adversary(model, ATTACK, "recycled"), sgd(model), data)
    file, any_number = tmp_path / "model.onnx", {0: torch.export.Dim.DYNAMIC}
    ordinary = conadv.plain(model).eval()
    torch.onnx.export(
        ordinary, (data[0][0],), file, dynamo=True, verbose=False, dynamic_shapes=(any_number,)
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given, images = session.get_inputs()[0].name, data[1][0][:3]
    [logits] = session.run(None, {given: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images), rtol=1e-4, atol=1e-4)

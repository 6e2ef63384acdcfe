"""From names to networks."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import conadv
from conadv.errors import ConadvError, RecipeError
from conadv.trainer.models import zoo as models
from conadv.trainer.models.small_resnet import SMALL_NETWORKS, PadShortcut
from conadv.trainer.models.zoo import build_model, create_model
from conadv.trainer.recipe import load_recipe


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # He et al. (2016), table 6, print 0.27 M for resnet20; the others are counted by hand.
        ("resnet20", 269_722),
        ("resnet8", 75_290),
        ("resnet18", 11_173_962),
    ],
)
def test_numbers_of_parameters(name: str, count: int) -> None:
    def convolution(i: int, o: int, k: int) -> int:
        return i * o * k * k + 2 * o  # with its batch norm

    widths, blocks = {
        "resnet8": ((16, 32, 64), 1),
        "resnet20": ((16, 32, 64), 3),
        "resnet18": ((64, 128, 256, 512), 2),
    }[name]
    by_hand, channels = convolution(3, widths[0], 3), widths[0]
    for width in widths:
        for _ in range(blocks):
            by_hand += convolution(channels, width, 3) + convolution(width, width, 3)
            if name == "resnet18" and channels != width:
                by_hand += convolution(channels, width, 1)
            channels = width
    by_hand += channels * 10 + 10
    assert parameters(create_model(f"cifar/{name}")) == by_hand == count


@pytest.mark.parametrize("name", sorted(SMALL_NETWORKS))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_small_networks_take_small_images(name: str, channels: int, size: int) -> None:
    model = create_model(f"cifar/{name}", in_chans=channels, num_classes=7)
    images = torch.randn(2, channels, size, size)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert stem.weight.grad is not None
    assert stem.weight.grad.abs().sum() > 0
    last = model.eval().to(memory_format=torch.channels_last)
    expected = copy.deepcopy(last)(images)
    got = last(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected)


def test_stem_stride_halves_every_stage_and_keeps_the_parameters() -> None:
    sizes = {}
    for stride in (1, 2):
        torch.manual_seed(0)
        model = create_model("cifar/resnet8", 1, options={"stem_stride": stride})
        stages = [model.layer1, model.layer2, model.layer3]
        seen: list[int] = []
        for stage in stages:
            stage.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.shape[-1]))
        assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
        sizes[stride] = (seen, {name: p.shape for name, p in model.named_parameters()})
    assert sizes[1][0] == [28, 14, 7] and sizes[2][0] == [14, 7, 4]
    assert sizes[1][1] == sizes[2][1]


def test_shortcut_is_option_a() -> None:
    x = torch.arange(2 * 2 * 4 * 4.0).reshape(2, 2, 4, 4)
    shortcut = PadShortcut(2, 4, 2)
    expected = torch.zeros(2, 4, 2, 2)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    assert torch.equal(shortcut(x), expected)
    kept = shortcut(x.contiguous(memory_format=torch.channels_last))
    assert kept.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["cifar/resnet20", "torchvision/resnet18", "timm/resnet18"])
def test_last_gammas(name: str) -> None:
    for wanted, value in ((True, 0.0), (False, 1.0)):
        model = create_model(name, zero_init_last=wanted)
        blocks = [m for m in model.modules() if type(m).__name__ == "BasicBlock"]
        assert len(blocks) in (8, 9)
        for block in blocks:
            assert (block.bn2.weight == value).all()
            assert (block.bn1.weight == 1).all()


def test_blocks_start_as_their_shortcut() -> None:
    model = create_model("cifar/resnet8").eval()
    block = model.get_submodule("layer1.0")
    x = torch.randn(1, 16, 8, 8).abs()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v3_small"])
def test_torchvision_takes_other_channels(name: str) -> None:
    model = create_model(name, in_chans=1, num_classes=5)
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_own_resnet18_has_torchvisions_names() -> None:
    """All but the stem's weights fit, so that either library's weights can be carried over."""
    ours = create_model("cifar/resnet18", num_classes=1000).state_dict()
    theirs = create_model("torchvision/resnet18", num_classes=1000).state_dict()
    assert list(ours) == list(theirs)
    assert [n for n in ours if ours[n].shape != theirs[n].shape] == ["conv1.weight"]


def test_timm_takes_options() -> None:
    model = create_model("timm/resnet18", 1, 4, options={"drop_rate": 0.3})
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)
    assert model.drop_rate == 0.3


def test_patches_become_channels_and_the_width_is_an_option() -> None:
    model = create_model("cifar/patch-resnet9", 3, 10)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape == (32, 12, 3, 3), "2 x 2 pixels of 3 channels"
    # 12-32, 4 of 32-32 to 128-128 as residual pairs, 32-64, 64-128; gamma and beta; the last layer
    convolutions = 9 * (12 * 32 + 32 * 64 + 64 * 128 + 2 * (32**2 + 64**2 + 128**2))
    norms = 2 * 3 * (32 + 64 + 128)
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + 128 * 10
    wide = create_model("cifar/patch-resnet9", 3, 10, options={"width": 64})
    assert wide(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert wide.get_parameter("fc.weight").shape == (10, 256)


@pytest.mark.parametrize(
    "name", ["cifar/resnet8", "cifar/resnet18", "cifar/resnet9", "cifar/patch-resnet9"]
)
def test_they_split_and_come_back(name: str) -> None:
    model = create_model(name, 1, 4)
    keys = list(model.state_dict())
    split = conadv.split_norms(copy.deepcopy(model))
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(split.eval()(images), model.eval()(images))
    assert list(conadv.plain(split).state_dict()) == keys


def test_build_model_takes_its_numbers_from_the_data() -> None:
    settings = load_recipe("smoke").model
    assert build_model(settings, 1, 6)(torch.randn(2, 1, 16, 16)).shape == (2, 6)
    wrong = load_recipe("smoke", ["model.in_chans=3"]).model
    with pytest.raises(RecipeError, match="model.in_chans=3, but the images have 1 channels"):
        build_model(wrong, 1, 6)
    few = load_recipe("smoke", ["model.num_classes=4"]).model
    with pytest.raises(RecipeError, match="model.num_classes=4, but the data has 6 classes"):
        build_model(few, 1, 6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar/resnet21", "Did you mean cifar/resnet20"),
        ("timm/resnet5o", "Did you mean timm/resnet50"),
        ("torchvision/resnet5o", "Did you mean torchvision/resnet50"),
        ("tim/resnet50", "Did you mean timm/resnet50?"),
        ("resnet8", "Did you mean cifar/resnet8"),
        ("torchvision/fcn_resnet50", "no such network"),
    ],
)
def test_an_unknown_name(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match="name=") as caught:
        create_model(name)
    assert said in str(caught.value)


def test_options_that_a_network_does_not_take() -> None:
    for name in ("cifar/resnet8", "torchvision/resnet18"):
        with pytest.raises(RecipeError, match="'drop': 1.*does not take them"):
            create_model(name, options={"drop": 1})


def test_pretrained_weights_are_for_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    real = torchvision.models.get_model

    def offline(name: str, weights: Any, **options: Any) -> nn.Module:
        assert weights == "DEFAULT"
        model: nn.Module = real(name, weights=None, **options)
        return model

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    model = create_model("torchvision/resnet18", num_classes=5, pretrained=True)
    assert model.fc.out_features == 5
    with pytest.raises(RecipeError, match="are for 3 channels"):
        create_model("torchvision/resnet18", 1, pretrained=True)


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(models, "importlib", SimpleNamespace(import_module=broken))
    for name in ("torchvision/resnet18", "timm/resnet18"):
        with pytest.raises(ConadvError, match="from the same place, in one command") as caught:
            create_model(name)
        assert "torchvision::nms" in str(caught.value)


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConadvError, match=r"Type: pip install .*\[train\]"):
        create_model("timm/resnet18")

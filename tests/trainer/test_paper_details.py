"""Details that the published accuracies depend on, in the networks and losses a recipe builds."""

import pytest
import torch
from torch import nn

import conadv
from conadv.trainer.build import build
from conadv.trainer.models.zoo import build_model, create_model
from conadv.trainer.recipe import load_recipe
from support.runs import tiny

RESNET50 = ["torchvision/resnet50", "timm/resnet50"]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]


@pytest.mark.parametrize("name", RESNET50)
def test_resnet50_is_version_1_5(name: str) -> None:
    """Goyal et al. (2017) moved the stride from the 1x1 to the 3x3 convolution; so did MLPerf."""
    model = create_model(name, 3, 1000)
    # Hand count of torchvision's documentation of ResNet50_Weights.
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    strides = []
    for number, depth in enumerate((3, 4, 6, 3), start=1):
        layer = list(model.get_submodule(f"layer{number}").children())
        assert len(layer) == depth
        for block in layer:
            convolutions = [block.get_submodule(f"conv{i}") for i in (1, 2, 3)]
            assert [c.kernel_size for c in convolutions] == [(1, 1), (3, 3), (1, 1)]
            strides.append([c.stride[0] for c in convolutions])
    first_of_a_stage = [[1, 2, 1] if i in (3, 7, 13) else [1, 1, 1] for i in range(16)]
    assert strides == first_of_a_stage


@pytest.mark.parametrize("name", RESNET50)
@pytest.mark.parametrize("wanted", [True, False])
def test_the_recipe_sets_the_last_gamma(name: str, wanted: bool) -> None:
    overrides = [f"model.name={name}", f"model.zero_init_last={str(wanted).lower()}"]
    model = build_model(load_recipe("smoke", overrides).model, 1, 6)
    found = blocks(model)
    assert len(found) == 16
    last = {id(block.get_submodule("bn3")) for block in found}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            expected = 0.0 if id(module) in last and wanted else 1.0
            assert (module.weight == expected).all()


@pytest.mark.parametrize(
    "name", ["torchvision/resnext50_32x4d", "timm/resnet26", "timm/seresnet50"]
)
def test_a_block_with_zero_gamma_is_its_shortcut(name: str) -> None:
    block = blocks(create_model(name, zero_init_last=True))[1].eval()  # no downsampling in it
    x = torch.rand(2, 256, 8, 8)
    assert torch.equal(block(x), x)
    block = blocks(create_model(name, zero_init_last=False))[1].eval()
    assert not torch.equal(block(x), x)


def test_the_last_gamma_is_zero_unless_the_recipe_says_otherwise() -> None:
    assert load_recipe("smoke", ["model.name=timm/resnet50"]).model.zero_init_last is True


def test_label_smoothing_spreads_over_all_classes() -> None:
    """Szegedy et al. (2016): target (1 - s) for the class plus s / K for every one of K."""
    smoothing, labels = 0.1, torch.tensor([2, 0, 5])
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    target = torch.full((3, 6), smoothing / 6)
    target[range(3), labels] += 1 - smoothing
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    criterion = build(tiny(f"train.label_smoothing={smoothing}")).trainer.criterion
    torch.testing.assert_close(criterion(logits, labels), expected)
    plain = build(tiny()).trainer.criterion
    torch.testing.assert_close(
        plain(logits, labels), -logits.log_softmax(1)[range(3), labels].mean()
    )


def test_copies_have_smoothed_labels_as_their_images_have() -> None:
    trainer = build(tiny("train.label_smoothing=0.1", "method.schedule=recycled")).trainer
    adversary, model = trainer.adversary, trainer.model.train()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    for _ in range(2):  # the weights stay as they are, so both rounds have the same loss
        adversary.loss(images, labels, trainer.criterion).backward()
        adversary.collect()
    assert adversary.preview is not None
    clean, adversarial = adversary.diagnostics.clean_loss, adversary.diagnostics.adversarial_loss
    assert clean is not None and adversarial is not None
    for found, branch, batch in (
        (clean, "clean", images),
        (adversarial, "adversarial", adversary.preview[1]),
    ):
        with torch.no_grad(), conadv.route(model, branch):
            logits = model(batch).log_softmax(1)
        smoothed = -(0.9 * logits[range(4), labels] + 0.05 * logits.sum(1)).mean()
        torch.testing.assert_close(found, smoothed)

"""convert_sync_batchnorm, torch's and timm's, before and after the split: no branch dies."""

import pytest
import timm.layers
import torch
import torch.distributed as dist
from torch import nn

import conadv
from conadv.branches.branches import SplitNorm
from support.nets import NAMES, conv_net, images, perturb_norms, twin

CONVERTERS = {
    "torch": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm": timm.layers.convert_sync_batchnorm,
}


def timm_net():
    """BatchNormAct2d: torch's own converter would lose its activation, split or not."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), timm.layers.BatchNormAct2d(6, act_layer=nn.SiLU), nn.Flatten()
    )


@pytest.mark.parametrize(
    ("converter", "net"), [("torch", conv_net), ("timm", conv_net), ("timm", timm_net)]
)
@pytest.mark.parametrize("statistics", ["separate", "affine", "shared"])
@pytest.mark.parametrize("first", ["split", "sync"])
def test_every_branch_stays_alive(converter, net, statistics, first):
    # In double: what a bias before a batch norm gets is nothing but rounding, of large terms.
    original = perturb_norms(net().double())
    reference = perturb_norms(conadv.split_norms(original, statistics=statistics))
    convert = CONVERTERS[converter]
    if first == "split":
        model = convert(twin(reference))
    else:
        model = conadv.split_norms(convert(conadv.plain(reference)), statistics=statistics)
        model.load_state_dict(reference.state_dict())
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert conadv.branch_names(model) == NAMES
    assert model.state_dict().keys() == reference.state_dict().keys()

    x = images().double()
    for layout in ("clean", "adversarial", [("clean", 5), ("adversarial", 3)]):
        for training in (False, True):
            one, two = twin(reference).train(training), twin(model).train(training)
            with conadv.route(one, layout), conadv.route(two, layout):
                want, got = one(x), two(x)
            torch.testing.assert_close(got, want)
            want.square().sum().backward()
            got.square().sum().backward()
            for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
                assert (a.grad is None) == (b.grad is None), name
                if a.grad is not None:
                    torch.testing.assert_close(b.grad, a.grad, atol=1e-9, rtol=1e-9, msg=name)
            for (name, a), b in zip(one.named_buffers(), two.buffers(), strict=True):
                torch.testing.assert_close(b, a, msg=name)


def test_an_activation_that_torch_s_converter_loses_is_an_error():
    """Unsplit, the same mistake is silent."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(conadv.split_norms(timm_net()))
    with pytest.raises(RuntimeError, match="use timm's"):
        model(images())


def test_a_layer_with_a_process_group_is_split_and_copied():
    """A process group cannot be copied: the branches and the plain model share it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.new_group([0])
        model = nn.SyncBatchNorm.convert_sync_batchnorm(conv_net(), group)
        split = conadv.split_norms(model)
        for module in split.modules():
            if isinstance(module, SplitNorm):
                assert all(norm.process_group is group for norm in module.norms.values())
        plain = conadv.plain(split, "adversarial")
        assert plain[1].process_group is group
    finally:
        dist.destroy_process_group()

"""What split_norms refuses, and that it leaves the model alone then."""

import pytest
import torch
from torch import nn

import conadv
from support.nets import NAMES, conv_net


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": ()}, "at least one name"),
        ({"branches": "clean"}, "give a list"),
        ({"branches": ("a", "a")}, "all different"),
        ({"branches": ("a.b",)}, "letters"),
        ({"branches": (1, 2)}, "letters"),
        ({"branches": ("clean", "train")}, "take another"),
        ({"branches": ("clean", "keys")}, "take another"),
        ({"branches": ("clean", "training")}, "take another"),
        ({"statistics": "both"}, "separate, affine, shared"),
        ({"group_size": 0}, "at least 1"),
        ({"group_size": 2.5}, "whole number"),
    ],
)
def test_refused_settings_leave_the_model_alone(arguments, message):
    model = conv_net()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        conadv.split_norms(model, **arguments)
    assert list(model.state_dict()) == keys


def test_refused_models():
    with pytest.raises(ValueError, match="split already"):
        conadv.split_norms(conadv.split_norms(conv_net()))
    with pytest.raises(ValueError, match="1 is a LazyBatchNorm1d that has not seen data"):
        conadv.split_norms(nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d()))
    with pytest.raises(ValueError, match="OptimizedModule.*call split_norms first"):
        conadv.split_norms(torch.compile(conv_net(), backend="eager"))
    seen = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    seen(torch.rand(4, 2))
    assert conadv.branch_names(conadv.split_norms(seen)) == NAMES

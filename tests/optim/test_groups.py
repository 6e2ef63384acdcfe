"""Bias and norm are neither decayed nor adapted."""

import pytest
import torch
from torch import nn

import conadv
from conadv.optim import LAMB, LARS, param_groups


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2)
    )


def names(model: nn.Module, params: list[nn.Parameter]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is q for q in params)}


def test_weights_and_the_rest() -> None:
    model = network()
    weights, rest = param_groups(model, weight_decay=0.1)
    assert names(model, weights["params"]) == {"0.weight", "3.weight"}
    assert names(model, rest["params"]) == {
        "0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"
    }  # fmt: skip
    assert (weights["weight_decay"], weights["adapt"]) == (0.1, True)
    assert (rest["weight_decay"], rest["adapt"]) == (0.0, False)


def test_every_branch_of_a_split_norm_is_excluded() -> None:
    model = conadv.split_norms(network(), branches=("clean", "adversarial", "strong"))
    weights, rest = param_groups(model, 0.1)
    assert names(model, weights["params"]) == {"0.weight", "3.weight"}
    assert len(rest["params"]) == 2 + 2 * 3 + 2
    assert all(p.ndim <= 1 for p in rest["params"])


def test_names_to_exclude() -> None:
    model = network()
    weights, rest = param_groups(model, 0.1, exclude=["3.*"])
    assert names(model, weights["params"]) == {"0.weight"}
    assert "3.weight" in names(model, rest["params"])


def test_frozen_and_tied_parameters() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    weights, rest = param_groups(model)
    assert len(weights["params"]) == 1 and rest["params"] == []


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_optimizers_take_the_groups(kind: type[LARS] | type[LAMB]) -> None:
    model = nn.Linear(3, 3, bias=False)
    optimizer = kind(param_groups(model, 0.1), lr=0.1, weight_decay=9.0)  # one group is empty
    before = model.weight.detach().clone()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert not torch.equal(model.weight, before)


def test_errors() -> None:
    with pytest.raises(ValueError, match="weight_decay=-1"):
        param_groups(network(), -1)
    with pytest.raises(ValueError, match=r"'0\.wieght' matches no parameter.*'0\.weight'"):
        param_groups(network(), exclude=["0.wieght"])
    with pytest.raises(ValueError, match=r"give a list of names, such as \['bias'\]"):
        param_groups(network(), exclude="bias")
    with pytest.raises(ValueError, match="Flatten has nothing to train: it has 0 parameters"):
        param_groups(nn.Flatten())
    with pytest.raises(ValueError, match="none of which requires a gradient"):
        param_groups(network().requires_grad_(False))
    with pytest.raises(ValueError, match="run one batch through the lazy modules"):
        param_groups(nn.LazyLinear(3))

"""Weights of a checkpoint go back into networks that ask for the version of their format."""

import pytest
import torch

from conadv.trainer.build import build
from conadv.trainer.checkpoint.reshard import load_weights
from conadv.trainer.models.zoo import create_model
from support.runs import tiny


def test_mnasnet_takes_a_plain_mapping() -> None:
    model = create_model("torchvision/mnasnet0_5")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = create_model("torchvision/mnasnet0_5")
    with pytest.raises(ValueError, match="version sh[a-z]+ be set"):  # torchvision's own way
        fresh.load_state_dict(state)
    load_weights(fresh, state)
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in state.items())


def test_it_is_strict() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(model, {"weight": torch.zeros(2, 2)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def test_a_trainer_of_mnasnet_continues() -> None:
    recipe = tiny(
        "model.name=torchvision/mnasnet0_5", "data.synthetic.size=32", "train.ema_decay=0.9"
    )
    first, second = build(recipe).trainer, build(recipe).trainer
    with torch.no_grad():
        for model in (first.model, first.update.evaluated_model):
            next(model.parameters()).add_(1)
    second.load_state_dict(first.state_dict(), first.rank_state_dict())
    for one, other in ((first.model, second.model), (first.update.ema, second.update.ema)):
        assert one is not None and other is not None
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)

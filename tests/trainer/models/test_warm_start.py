"""Fine-tuning: weights to begin with, a new head, frozen layers, learning rates by layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from conadv.errors import CheckpointError, Interrupted, RecipeError
from conadv.trainer.build import build
from conadv.trainer.checkpoint.starting_weights import starting_weights
from conadv.trainer.evaluation.evaluate import evaluate_run
from conadv.trainer.evaluation.export import export_run
from conadv.trainer.models import zoo
from conadv.trainer.models.zoo import create_model
from conadv.trainer.start import train
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny

NETWORK = ("model.name=cifar/resnet8", "method.schedule=vanilla")


def network(classes: int = 5) -> torch.nn.Module:
    torch.manual_seed(1)
    return create_model("cifar/resnet8", 3, classes)


@pytest.mark.parametrize("form", ["pt", "wrapped", "safetensors"])
def test_a_state_dict_in_a_file(tmp_path: Path, form: str) -> None:
    state = network().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pt":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{n}": w for n, w in state.items()}, "epoch": 3}, path)
    recipe = tiny(*NETWORK, f"model.weights={path}")
    said: list[str] = []
    built = build(recipe, weights=starting_weights(recipe), say=said.append)
    own = built.trainer.model.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape == (2, 64)
    assert said == [f"from {path}: {len(state) - 2} tensors; new: fc.weight, fc.bias"]


def test_the_folder_of_another_run(tmp_path: Path) -> None:
    quietly(tiny("train.steps=2"), tmp_path / "first")
    weights = load_file(export_run(tmp_path / "first"))
    recipe = tiny(f"model.weights={tmp_path / 'first'}")
    found = starting_weights(recipe)
    assert found is not None and found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    output = tmp_path / "said.txt"
    with output.open("w") as file:
        train(recipe, tmp_path / "second", console=Console(file=file, width=200))
    assert f"from {tmp_path / 'first'}: " in output.read_text()


def test_a_resumed_run_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(network(2).state_dict(), path)
    recipe = tiny(*NETWORK, f"model.weights={path}")
    whole = quietly(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "run", stop=StopAfter(3))
    path.unlink()
    quietly(recipe, tmp_path / "run", resume=True)
    assert_same_state(*(final_state(tmp_path / n)["trainer"] for n in ("whole", "run")))
    assert evaluate_run(tmp_path / "run", steps=0)["test_accuracy"] == whole.test_accuracy
    with pytest.raises(CheckpointError, match="No such file"):
        quietly(recipe, tmp_path / "new")


def test_a_run_stopped_before_its_first_checkpoint_begins_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(network(2).state_dict(), path)
    recipe = tiny(*NETWORK, f"model.weights={path}")
    quietly(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "run", stop=StopAfter(3))
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    quietly(recipe, tmp_path / "run", resume=True)
    assert_same_state(*(final_state(tmp_path / n)["trainer"] for n in ("whole", "run")))


def test_pretrained_weights_are_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    make: Any = zoo._torchvision

    def counted(name: str, chans: int, classes: int, pretrained: bool, options: Any) -> Any:
        asked.append(pretrained)
        return make(name, chans, classes, False, options)

    monkeypatch.setattr(zoo, "_torchvision", counted)
    recipe = tiny(
        "model.name=torchvision/resnet18", "model.pretrained=true", "data.synthetic.size=32"
    )
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "run", stop=StopAfter(2))
    quietly(recipe, tmp_path / "run", resume=True)
    evaluate_run(tmp_path / "run", steps=0)
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"conv1.weight": torch.zeros(16, 3, 3, 3)}, "is not in it"),
        ({"conv1.weight": torch.zeros(8, 3, 3, 3)}, r"conv1.weight of shape \(16, 3, 3, 3\) has"),
        ({"a": 3}, "a is no tensor"),
        ([1, 2], "it holds no state dict"),
        (print, "could run code"),
    ],
)
def test_what_is_no_weights_of_this_network(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    recipe = tiny(*NETWORK, f"model.weights={tmp_path / 'w.pt'}")
    with pytest.raises((RecipeError, CheckpointError), match=said):
        build(recipe, weights=starting_weights(recipe))


@pytest.mark.parametrize("schedule", ["vanilla", "recycled", "lookahead", "sequential"])
def test_frozen_layers_stay(schedule: str) -> None:
    frozen = "model.freeze=[conv1.*, bn1.*, layer1.*]"
    built = build(tiny(frozen, f"method.schedule={schedule}", "data.crop_padding=0"))
    model = built.trainer.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        built.trainer.train_step()
    stayed = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert {n for n in before if n.startswith(("conv1.", "bn1.", "layer1."))} <= stayed
    assert not any(n.startswith(("layer3.0.conv", "fc")) for n in stayed)


def test_what_cannot_be_frozen() -> None:
    with pytest.raises(RecipeError, match=r"'layer9.\*' matches no parameter"):
        build(tiny("model.freeze=[layer9.*]"))
    with pytest.raises(RecipeError, match="nothing is left to train"):
        build(tiny("model.freeze=['*']"))


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw", "muon"])
def test_learning_rates_by_layer(name: str) -> None:
    factors = "optimizer.lr_factors={fc.*: 10, 'layer?.*': 0.5, 'layer1.*': 3, bn1.weight: 0.1}"
    recipe = tiny(f"optimizer.name={name}", "optimizer.lr=0.2", factors)
    update = build(recipe).trainer.update
    names = {p: n for n, p in update.model.named_parameters()}
    rates = {names[p]: g["initial_lr"] for g in update.optimizer.param_groups for p in g["params"]}
    assert rates.keys() == set(names.values())
    assert rates["fc.weight"] == rates["fc.bias"] == 2.0
    assert rates["layer1.0.conv1.weight"] == 0.1  # the first pattern that fits
    assert rates["bn1.norms.clean.weight"] == rates["bn1.norms.adversarial.weight"]
    assert rates["bn1.norms.clean.weight"] == pytest.approx(0.02)
    assert rates["conv1.weight"] == 0.2
    with pytest.raises(RecipeError, match=r"lr_factors: 'head.\*' matches no parameter"):
        build(tiny("optimizer.lr_factors={head.*: 2}"))

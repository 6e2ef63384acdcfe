"""Networks, data sets and losses of one's own: by name in a recipe, or as objects."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from conadv.errors import DataError, Interrupted, RecipeError
from conadv.trainer import own, train
from conadv.trainer.build import build
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.data.synthetic import make_synthetic
from conadv.trainer.evaluation.evaluate import evaluate_run
from conadv.trainer.evaluation.export import export_run
from conadv.trainer.input.random_images import images_of
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run.result import Result
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny

PARTS = """
import torch
from torch import nn

from conadv.trainer.data.synthetic import make_synthetic


def network(in_chans, num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )


def blobs(count=60):
    return make_synthetic(size=8, classes=3, train_images=count, test_images=12)


class Pairs:
    classes = ["a", "b"]

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return torch.full((8, 8), 3 * place, dtype=torch.uint8).numpy(), place % 2


def pairs(root="none", floats=False):
    assert root == "here"
    return Pairs(60), Pairs(12)


class Hinge(nn.Module):
    def __init__(self, margin=1.0):
        super().__init__()
        self.loss = nn.MultiMarginLoss(margin=margin)

    def forward(self, logits, labels):
        return self.loss(logits, labels)


def squares(logits, labels, scale=1.0):
    return scale * (logits - nn.functional.one_hot(labels, logits.shape[1])).square().mean()
"""
NAMED = ("model.name=own_parts:network", "data.dataset=own_parts:blobs")


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module own_parts, in a folder that Python looks in."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_parts", None)


def test_a_run_of_named_parts_is_resumed_evaluated_and_exported(tmp_path: Path) -> None:
    loss = ("train.loss=own_parts:Hinge", "train.loss_options.margin=0.5")
    recipe = tiny(*NAMED, *loss, "model.options={width: 6}")
    whole = quietly(recipe, tmp_path / "whole")
    assert whole.status == "finished"
    short = tiny(*NAMED, *loss, "model.options={width: 6}", "checkpoint.every_steps=3")
    with pytest.raises(Interrupted):
        quietly(short, tmp_path / "parts", stop=StopAfter(3))
    quietly(short, tmp_path / "parts", resume=True)
    mine, other = (final_state(tmp_path / name)["trainer"] for name in ("whole", "parts"))
    assert_same_state(mine, other)
    found = evaluate_run(tmp_path / "whole", steps=0)
    assert found["test_accuracy"] == whole.test_accuracy and found["images"] == 12
    assert export_run(tmp_path / "whole").stat().st_size > 1000
    assert images_of(recipe) == ((3, 8, 8), 3, 51)


def test_a_missing_module_is_named_on_resume(tmp_path: Path) -> None:
    quietly(tiny(*NAMED, "train.steps=1"), tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "conadv", "train", str(tmp_path / "run"), "--resume"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "model.name='own_parts:network': No module named 'own_parts'" in done.stderr
    assert "folder of $PYTHONPATH" in done.stderr


def test_pairs_of_images_and_labels_are_gathered() -> None:
    splits = build(tiny("data.dataset=own_parts:pairs", "data.root=here")).splits
    assert splits.facts.classes == ("a", "b") and splits.facts.channels == 1
    assert splits.test().resident().images[5].unique().tolist() == [15]
    with pytest.raises(DataError, match="has to take data.options"):
        build(tiny("data.dataset=own_parts:blobs", "data.options={cout: 3}"))
    with pytest.raises(DataError, match="make a conadv ImageDataset"):
        build(tiny("data.dataset=own_parts:Pairs", "data.options={count: 3}"))
    with pytest.raises(RecipeError, match="only a data set of one's own has them"):
        tiny("data.options={count: 3}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("model.name=own_parts:nothing", "has no attribute 'nothing'"),
        ("model.name=own_parts:__doc__", "it is a NoneType, which cannot be called"),
        ("data.dataset=own_parts:nothing", "has no attribute 'nothing'"),
        ("data.dataset=cifar", "Did you mean cifar10"),
        ("train.loss=own_parts:nothing", "has no attribute 'nothing'"),
        ("train.loss=crossentropy", "Allowed: cross_entropy, bce, focal"),
    ],
)
def test_what_is_not_there_is_said(given: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny(given)
    assert said in str(caught.value)


def test_a_loss_of_ones_own_has_its_own_settings() -> None:
    for given in ("train.label_smoothing=0.1", "train.class_weights=balanced"):
        with pytest.raises(RecipeError, match="a loss of one's own does that itself"):
            tiny("train.loss=own_parts:squares", given)
    criterion = build(
        tiny("train.loss=own_parts:squares", "train.loss_options.scale=2")
    ).trainer.criterion
    assert criterion(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 1
    with pytest.raises(RecipeError, match="does not take train.loss_options="):
        build(tiny("train.loss=own_parts:Hinge", "train.loss_options.margni=1"))


# -- objects -----------------------------------------------------------------------------------


def handed(recipe: Recipe, out: Path, **things: object) -> Result:
    return train(recipe, out, console=Console(quiet=True), **things)  # type: ignore[arg-type]


def test_objects_that_can_be_imported_are_kept_by_their_name(tmp_path: Path) -> None:
    import own_parts  # type: ignore[import-not-found]

    things = {
        "model": own_parts.network,
        "dataset": own_parts.blobs,
        "criterion": own_parts.Hinge,
        "optimizer": torch.optim.Adam,
    }
    result = handed(tiny("optimizer.lr=0.01"), tmp_path / "run", **things)
    assert result.status == "finished"
    recipe = load_recipe(tmp_path / "run")
    assert (recipe.model.name, recipe.data.dataset) == ("own_parts:network", "own_parts:blobs")
    assert recipe.train.loss == "own_parts:Hinge"
    assert handed(tiny("optimizer.lr=0.01"), tmp_path / "run", resume=True, **things) == result


def test_objects_that_cannot_be_imported_are_known_in_this_process(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    before = network[1].weight.detach().clone()
    dataset = make_synthetic(size=8, classes=2, train_images=56, test_images=16)
    things = {"model": network, "dataset": dataset, "criterion": lambda a, b: a.square().mean()}
    result = handed(tiny("method.schedule=vanilla"), tmp_path / "run", **things)
    assert torch.equal(network[1].weight, before), "a copy is trained"
    assert evaluate_run(tmp_path / "run", steps=0)["test_accuracy"] == result.test_accuracy
    name = load_recipe(tmp_path / "run").model.name
    assert name.startswith("conadv.trainer.own:own_Sequential_")
    delattr(own, name.partition(":")[2])  # as in another process
    with pytest.raises(RecipeError, match="was an object that another process gave to train"):
        load_recipe(tmp_path / "run")
    assert own.keep(network) == name
    assert evaluate_run(tmp_path / "run", steps=0)["test_accuracy"] == result.test_accuracy


def test_names_tell_things_apart() -> None:
    def small(count: int) -> ImageDataset:
        return make_synthetic(size=4, classes=2, train_images=count, test_images=4)

    assert own.keep(nn.Linear(2, 3)) == own.keep(nn.Linear(2, 3)) != own.keep(nn.Linear(2, 4))
    assert own.keep(small(8)) == own.keep(small(8)) != own.keep(small(10))
    assert own.name_of(make_synthetic) == "conadv.trainer.data.synthetic:make_synthetic"
    assert own.name_of("a.b:c") == "a.b:c"

"""Reading a run back: evaluation through either branch, and the plain model by name."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import conadv
from conadv import _files
from conadv.errors import CheckpointError, Interrupted, RunFolderError
from conadv.trainer.checkpoint.load_run import load_run
from conadv.trainer.evaluation.evaluate import evaluate_run
from conadv.trainer.evaluation.export import export_run
from conadv.trainer.evaluation.robustness import robust_accuracy
from conadv.trainer.run.result import Result
from support.runs import StopAfter, quietly, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    quietly(tiny("hardware.precision=fp32", "evaluation.robust_steps=0"), folder)
    return folder


def test_evaluation_finds_what_the_run_found(run: Path) -> None:
    result = Result.read(run / "result.json")
    found = evaluate_run(run, steps=2)
    assert found["test_accuracy"] == result.test_accuracy
    assert found["fgsm_accuracy"] == result.robust_accuracy
    assert found["images"] == 16 and found["attacked_images"] == 8 and found["step"] == 6
    assert found["epsilon"] == 4 / 255 and found["branch"] == "clean"
    assert json.loads((run / "evaluation.json").read_text()) == found


def test_figures_of_a_run_that_one_may_only_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(_files, "write_json", refuse)
    with pytest.warns(UserWarning, match=r"could not write .*evaluation\.json: Permission denied"):
        found = evaluate_run(run, steps=0)
    assert found["test_accuracy"] == Result.read(run / "result.json").test_accuracy


def test_either_branch(run: Path) -> None:
    clean = evaluate_run(run, branch="clean", steps=0)
    adversarial = evaluate_run(run, branch="adversarial", steps=0)
    assert clean["pgd_accuracy"] is None
    assert clean["test_loss"] != adversarial["test_loss"]


def test_pgd_agrees_with_the_library(run: Path) -> None:
    found = evaluate_run(run, epsilon=8 / 255, steps=3, restarts=2, images=12)
    saved = load_run(run)
    test = saved.splits.test()
    attack = conadv.Attack(8 / 255, test.mean, test.std, steps=3, random_start=1.0)
    batches = test.first(12).batches(64, torch.device("cpu"))
    expected = robust_accuracy(saved.model, batches, attack, branch="clean", restarts=2)
    assert found["pgd_accuracy"] == expected.robust_accuracy


def test_best_checkpoint_is_the_best_on_validation(run: Path) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [(m["val_accuracy"], -m["step"]) for m in metrics if m["kind"] == "eval"]
    assert load_run(run, checkpoint="best").step == -max(scores)[1]


def test_averaged_weights_are_what_is_read(tmp_path: Path) -> None:
    quietly(tiny("train.ema_decay=0.5", "hardware.precision=fp32"), tmp_path / "a")
    saved = load_run(tmp_path / "a")
    state = torch.load(tmp_path / "a/checkpoints/last.pt", weights_only=True)["trainer"]
    weights = saved.model.state_dict()
    assert all(torch.equal(v, state["ema"][f"module.{k}"]) for k, v in weights.items())
    assert any(not torch.equal(v, state["model"][k]) for k, v in weights.items())
    result = Result.read(tmp_path / "a/result.json")
    assert evaluate_run(tmp_path / "a", steps=0)["test_accuracy"] == result.test_accuracy


def test_what_is_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        evaluate_run(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_run(run, checkpoint="step_00000099.pt")
    with pytest.raises(RunFolderError, match="clean and adversarial"):
        export_run(run, branch="advers")
    quietly(tiny("method.schedule=vanilla", "data.validation=0"), tmp_path / "vanilla")
    with pytest.raises(RunFolderError, match="has clean"):
        evaluate_run(tmp_path / "vanilla", branch="adversarial")
    with pytest.raises(CheckpointError, match="validation split"):
        evaluate_run(tmp_path / "vanilla", checkpoint="best")


def test_a_recipe_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        quietly(tiny(), tmp_path / "a", stop=StopAfter(1))
    recipe = tmp_path / "a/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("cifar/resnet8", "cifar/resnet20"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_run(tmp_path / "a")


# -- export --------------------------------------------------------------------------------------


def _named(name: str, path: Path) -> torch.nn.Module:
    library, _, short = name.partition("/")
    if library == "timm":
        import timm

        return timm.create_model(short, checkpoint_path=str(path), num_classes=2)
    if library == "torchvision":
        import torchvision

        model = torchvision.models.get_model(short, num_classes=2)
    else:
        from conadv.trainer.models.zoo import create_model

        model = create_model(name, 3, 2)
    model.load_state_dict(load_file(path))
    return model


@pytest.mark.parametrize("statistics", ["separate", "affine"])
@pytest.mark.parametrize(
    "name", ["cifar/resnet8", "timm/test_resnet", "timm/test_efficientnet", "torchvision/resnet18"]
)
def test_exported_model_is_the_clean_branch_to_the_bit(
    name: str, statistics: str, tmp_path: Path
) -> None:
    recipe = tiny(
        f"model.name={name}",
        f"norm.statistics={statistics}",
        "train.steps=2",
        "data.synthetic.size=32",
        "data.validation=0",
    )
    run = tmp_path / "run"
    quietly(recipe, run)
    path = export_run(run)
    plain = _named(name, path).eval()
    split = load_run(run).model
    assert conadv.branch_names(split) == ("clean", "adversarial")
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images), split(images))
        with conadv.route(split, "adversarial"):
            assert not torch.equal(plain(images), split(images))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == name and metadata["branch"] == "clean"
    assert len(json.loads(metadata["mean"])) == 3 and len(json.loads(metadata["classes"])) == 2


def test_export_of_the_other_branch_to_a_chosen_place(run: Path, tmp_path: Path) -> None:
    path = export_run(run, tmp_path / "new" / "model.safetensors", branch="adversarial")
    split = load_run(run).model
    plain = _named("cifar/resnet8", path).eval()
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad(), conadv.route(split, "adversarial"):
        assert torch.equal(plain(images), split(images))


def test_export_to_an_impossible_place(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="could not write"):
        export_run(run, tmp_path / "file" / "model.safetensors")

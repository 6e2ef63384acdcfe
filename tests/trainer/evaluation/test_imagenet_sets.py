"""ImageNet's further test sets, scored with the weights of a run."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conadv.cli import main
from conadv.errors import RunFolderError
from conadv.trainer.evaluation.imagenet import VARIANTS, load_real_labels, wnids
from conadv.trainer.evaluation.imagenet_sets import evaluate_sets
from support.runs import quietly, tiny


def class_folders(root: Path, names: tuple[str, ...], first: str = "{}.jpg") -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        grey = Image.new("RGB", (10, 10), (number % 256, number // 4, 100))
        grey.save(root / name / first.format(number + 1))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network with ImageNet's classes; its training images are gone."""
    folder = tmp_path_factory.mktemp("run")
    photos = folder / "photos"
    class_folders(photos / "train", wnids())
    class_folders(photos / "val", wnids(), "ILSVRC2012_val_{:08d}.JPEG")
    recipe = tiny(
        "data.dataset=files",
        f"data.root={photos}",
        "data.crop_padding=0",
        "data.validation=0",
        "data.files.size=8",
        "data.files.eval_size=8",
        "data.files.eval_resize=8",
        "data.files.workers=0",
        "method.schedule=recycled",
        "train.steps=1",
    )
    quietly(recipe, folder / "a")
    shutil.rmtree(photos / "train")
    return folder / "a"


@pytest.fixture(scope="module")
def val(run: Path) -> Path:
    return run.parent / "photos/val"


def test_validation_and_real_labels(run: Path, val: Path) -> None:
    before = json.loads((run / "result.json").read_text())["test_accuracy"]
    (found,) = evaluate_sets(run, [str(val)])["sets"]
    assert found["set"] == "val" and found["images"] == 1000
    assert found["top1"] == pytest.approx(before, abs=0.002)  # trained and tested in bf16
    labels = load_real_labels().labels[:1000]
    assert found["real"]["images"] == sum(map(bool, labels))
    assert json.loads((run / "imagenet.json").read_text())["sets"] == [found]


def test_classes_that_a_set_does_not_have_are_never_answered(run: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "a", VARIANTS["a"].folders)
    class_folders(tmp_path / "v2", tuple(str(n) for n in range(1000)))
    sets = [f"a={tmp_path / 'a'}", f"v2/top-images={tmp_path / 'v2'}"]
    found = {one["set"]: one for one in evaluate_sets(run, sets)["sets"]}
    assert found["a"]["classes"] == 200 and found["a"]["images"] == 200
    assert found["v2"]["classes"] == found["v2"]["images"] == 1000
    assert found["a"]["top5"] >= found["a"]["top1"]


def test_the_command(run: Path, val: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "figures.json"
    arguments = ["evaluate", str(run), "--test-set", str(val), "--workers", "0"]
    assert main([*arguments, "--json", str(out)]) == 0
    assert "ImageNet validation" in capsys.readouterr().out
    assert json.loads(out.read_text())["kind"] == "imagenet"
    assert main(["evaluate", str(run), "--test-set", str(val.parent)]) == 2
    assert "no known test set" in capsys.readouterr().err


def test_a_run_on_other_classes(val: Path, tmp_path: Path) -> None:
    quietly(tiny("train.steps=1"), tmp_path / "b")
    with pytest.raises(RunFolderError, match="2 classes of synthetic"):
        evaluate_sets(tmp_path / "b", [str(val)])

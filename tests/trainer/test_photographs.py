"""Training on photographs that packages carry: a folder, ImageNet's archives, shards."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from conadv.trainer.data.sources import open_source, write_shards
from conadv.trainer.distributed import World
from conadv.trainer.input.file_splits import load_file_splits
from conadv.trainer.recipe import Recipe
from support.images import CLASSES, KIT_NUMBERS, devkit, tar_bytes
from support.runs import assert_same_state, final_state, quietly, tiny

BIRDS_AND_INSECTS, MAMMALS, THINGS = CLASSES


def carried(package: str, pattern: str) -> list[Path]:
    """Files of a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"pip install {package}"
    return sorted(Path(spec.submodule_search_locations[0], "data").glob(pattern))


def class_of(path: Path) -> str:
    """By the number of its ImageNet class, which is in the name."""
    found = re.fullmatch(r"imagenet_\d+_(\d+)", path.stem)
    assert found is not None
    number = int(found[1])
    return THINGS if number >= 398 else MAMMALS if 151 <= number < 300 else BIRDS_AND_INSECTS


def training_photographs() -> list[tuple[str, Path]]:
    found = [(class_of(path), path) for path in carried("foolbox", "imagenet_*.jpg")]
    assert len(found) == 20 and {name for name, _ in found} == set(CLASSES)
    return [pair for pair in found if pair[1].stem != "imagenet_15_99"]


def test_photographs() -> list[tuple[str, Path]]:
    """PNG bytes among them, which ImageNet has under a JPEG's name, too."""
    names = {"chelsea.png": MAMMALS, "coffee.png": THINGS, "rocket.jpg": THINGS}
    held_out = [(BIRDS_AND_INSECTS, p) for p in carried("foolbox", "imagenet_15_99.jpg")]
    return held_out + [(names[p.name], p) for p in carried("skimage", "*") if p.name in names]


test_photographs.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for number, (name, path) in enumerate(training_photographs()):
        place = root / "train" / name / f"{name}_{number}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for number, (name, path) in enumerate(test_photographs(), 1):
        place = root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return root


@pytest.fixture
def archives(folder: Path, tmp_path: Path) -> Path:
    """The same, as ImageNet is published."""
    root = tmp_path / "imagenet"
    root.mkdir()
    inner = []
    for name in CLASSES:
        images = [(p.name, p.read_bytes()) for p in sorted((folder / "train" / name).iterdir())]
        inner.append((f"{name}.tar", tar_bytes(images)))
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    val = sorted((folder / "val").rglob("*.JPEG"), key=lambda p: p.name)
    members = [(p.name, p.read_bytes()) for p in val]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(members))
    devkit(root, [KIT_NUMBERS[p.parent.name] for p in val])
    return root


def recipe(root: Path, *overrides: str) -> Recipe:
    return tiny(
        "data.dataset=files",
        f"data.root={root}",
        "data.crop_padding=0",
        "data.validation=0",
        "data.files.size=48",
        "data.files.eval_size=48",
        "data.files.eval_resize=54",
        "data.files.workers=1",
        "method.schedule=recycled",
        "train.steps=4",
        *overrides,
    )


@pytest.mark.slow
def test_archives_train_like_the_unpacked_folder(
    folder: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONADV_DATA", str(tmp_path / "cache"))
    results = [
        quietly(recipe(root), tmp_path / name)
        for name, root in (("folder", folder), ("archives", archives))
    ]
    assert results[0].test_accuracy == results[1].test_accuracy
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("folder", "archives")]
    assert metrics[0] == metrics[1]
    states = [final_state(tmp_path / name)["trainer"] for name in ("folder", "archives")]
    assert_same_state(*states)
    losses = [json.loads(line).get("loss") for line in metrics[0].decode().splitlines()]
    assert len({loss for loss in losses if loss is not None}) == 4, "it trains"


@pytest.mark.slow
def test_shards_hold_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shards(open_source(folder, split), tmp_path / "shards" / split, images_per_shard=7)
    sets = []
    for root in (folder, tmp_path / "shards"):
        splits = load_file_splits(recipe(root), torch.device("cpu"), World())
        images = [*splits.train().batches(5, torch.device("cpu"))]
        images += splits.test().batches(5, torch.device("cpu"))
        pairs = [
            (int(y), x.tolist())
            for batch, labels in images
            for x, y in zip(batch, labels, strict=True)
        ]
        sets.append(sorted(pairs))
    assert len(sets[0]) == 23 and sets[0] == sets[1]
    result = quietly(recipe(tmp_path / "shards", "data.files.policy=randaugment"), tmp_path / "run")
    assert result.steps == 4 and result.test_accuracy is not None


def test_the_crop_of_a_photograph_is_torchvisions(folder: Path) -> None:
    """Within the rounding of scaled decoding: nothing is turned, shifted or of another colour."""
    from torchvision.transforms import v2

    made = recipe(folder, "data.files.eval_size=96", "data.files.eval_resize=110")
    found = load_file_splits(made, torch.device("cpu"), World()).test().resident()
    expected = v2.Compose([v2.Resize(110), v2.CenterCrop(96), v2.PILToTensor()])
    for images, path in zip(found.images, sorted((folder / "val").rglob("*.JPEG")), strict=True):
        other = expected(Image.open(path).convert("RGB"))
        assert (images.float() - other.float()).abs().mean() < 2, path

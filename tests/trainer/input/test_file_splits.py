"""Runs on images in files: the same whatever the workers, the form of the files and the ranks."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conadv.errors import ConadvError, DataError, Interrupted, RecipeError
from conadv.trainer.data.sources import open_source, write_shards
from conadv.trainer.distributed import World
from conadv.trainer.evaluation.evaluate import evaluate_run
from conadv.trainer.evaluation.export import export_run
from conadv.trainer.input.file_feed import FileFeed, make_pipeline
from conadv.trainer.input.file_splits import load_file_splits
from conadv.trainer.start import train
from support.images import write_photos
from support.launches import on_ranks
from support.launches import recipe as parallel_recipe
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny

CPU = torch.device("cpu")
FILES = (
    "data.dataset=files",
    "data.crop_padding=0",
    "data.files.size=16",
    "data.files.eval_size=16",
    "data.files.eval_resize=18",
    "data.files.workers=0",
    "data.validation=0.2",
    "train.steps=4",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 12 test images of two classes, in folders."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", classes=2, each=20)
    write_photos(root / "val", classes=2, each=6, seed=1)
    return root


damaged = pytest.mark.filterwarnings("ignore:.*cannot be decoded")
"""What evaluation says of such images, where training is looked at."""


def files(photos: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return tiny(*FILES, f"data.root={photos}", *overrides)


def feed_of(photos: Path, *overrides: str, slots: range = range(2)) -> FileFeed:
    made = files(photos, *overrides)
    feed = load_file_splits(made, CPU, World()).feed(made, slots)
    assert isinstance(feed, FileFeed)
    return feed


# -- what a step reads -------------------------------------------------------------------------


def read_all(feed: FileFeed, steps: range = range(4)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    try:
        return [feed.micro_batch(step, slot) for step in steps for slot in (0, 1)]
    finally:
        feed.close()


def test_a_step_is_a_function_of_the_seed_and_the_step(photos: Path) -> None:
    first, again = read_all(feed_of(photos)), read_all(feed_of(photos))
    for (images, labels), (same, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)
    assert first[0][0].shape == (8, 3, 16, 16) and first[0][0].dtype == torch.float32
    other = read_all(feed_of(photos, "seed=1"))
    assert not torch.equal(first[0][0], other[0][0])


def test_a_later_step_needs_no_earlier_one(photos: Path) -> None:
    """What a resumed run does."""
    whole, late = read_all(feed_of(photos)), read_all(feed_of(photos), range(2, 4))
    for (images, _), (same, _) in zip(whole[4:], late, strict=True):
        assert torch.equal(images, same)


@pytest.mark.slow
def test_workers_change_nothing(photos: Path) -> None:
    alone = read_all(feed_of(photos, "method.schedule=lookahead"))
    many = read_all(feed_of(photos, "method.schedule=lookahead", "data.files.workers=2"))
    for (images, labels), (same, same_labels) in zip(alone, many, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)


def test_only_what_the_trainer_will_ask_for_is_read_ahead(photos: Path) -> None:
    feed = feed_of(photos, "method.schedule=lookahead", "method.view=plain", slots=range(1, 2))
    keys = list(feed._from((1, 1, 0)))
    step = [(1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 0), (2, 1, 1), (3, 1, 0), (3, 1, 0), (3, 1, 1)]
    assert keys == step
    feed.close()


def test_labels_are_those_of_the_files(photos: Path) -> None:
    feed = feed_of(photos)
    source = open_source(photos, "train")
    for step in range(4):
        labels = torch.cat([feed.micro_batch(step, slot)[1] for slot in (0, 1)])
        assert labels.tolist() == source.labels[feed.sample_ids(step)].tolist()
    feed.close()


def test_the_second_view_is_another_crop(photos: Path) -> None:
    feed = feed_of(photos, "method.view=autoaugment-v0")
    images, labels = feed.micro_batch(0, 0)
    ((branch, (others, same)),) = feed.views(0, 0).items()
    assert branch == "augmented" and torch.equal(labels, same)
    assert others.shape == images.shape and not torch.equal(others, images)
    feed.close()


@pytest.mark.parametrize(
    ("policy", "named"),
    [("none", None), ("autoaugment-v0", "v0"), ("randaugment", "randaugment")],
)
def test_policies_by_their_library_names(photos: Path, policy: str, named: str | None) -> None:
    made = make_pipeline(files(photos, f"data.files.policy={policy}", "data.files.magnitude=7"))
    assert made.pipelines[0].policy == named
    assert made.pipelines[0].magnitude == (7 if policy == "randaugment" else None)
    assert len(made.pipelines) == 1


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.schedule=recycled", "data.files.policy=randaugment", "data.files.erasing=0.5"),
        ("method.schedule=sequential", "method.view=autoaugment-v0"),
        ("method.schedule=lookahead", "train.mixup=0.2", "train.cutmix=1", "attack.target=random"),
        ("method.schedule=recycled", "method.budget=fixed", "train.label_smoothing=0.1"),
    ],
)
def test_runs_and_resumes_bit_for_bit(
    photos: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    made = files(photos, *overrides)
    result = quietly(made, tmp_path / "whole")
    assert result.steps == 4 and result.test_accuracy is not None
    with pytest.raises(Interrupted):
        quietly(made, tmp_path / "broken", stop=StopAfter(2))
    quietly(made, tmp_path / "broken", resume=True)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(whole)["trainer"], final_state(broken)["trainer"])
    assert (whole / "pictures.npz").exists()


def test_shards_of_the_same_images_train_the_same(photos: Path, tmp_path: Path) -> None:
    """The order in shards is another one, so this is about running, scoring and exporting."""
    for split in ("train", "val"):
        write_shards(open_source(photos, split), tmp_path / "shards" / split, images_per_shard=9)
    made = files(tmp_path / "shards", "method.schedule=recycled")
    result = quietly(made, tmp_path / "run")
    again = evaluate_run(tmp_path / "run", steps=2)
    assert again["images"] == 12 and again["test_accuracy"] == result.test_accuracy
    assert export_run(tmp_path / "run").exists()


def test_three_branches_share_the_loss_in_thirds(photos: Path, tmp_path: Path) -> None:
    """The published ConAdv+AA: plain crop, second crop under AutoAugment, adversarial copy."""
    made = files(photos, "method.schedule=sequential", "method.view=autoaugment-v0")
    quietly(made, tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    for line in steps:
        expected = (2 * line["clean_loss"] + line["adversarial_loss"]) / 3
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    names = final_state(tmp_path / "run")["trainer"]["model"]
    assert any(".augmented." in name for name in names)


@pytest.mark.slow
def test_two_ranks_read_their_own_parts(photos: Path, tmp_path: Path) -> None:
    overrides = (*FILES, f"data.root={photos}", "method.schedule=lookahead", "train.steps=6")
    for size in (1, 2):
        assert on_ranks(size, tmp_path / str(size), [("run", overrides, {})]) == [{}] * size
    found, expected = (final_state(tmp_path / n / "run")["trainer"]["model"] for n in "21")
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5)
    parallel_recipe(*overrides)


# -- bad days ----------------------------------------------------------------------------------


@damaged
def test_a_damaged_image_is_replaced_and_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    broken = sorted((tmp_path / "photos/train").rglob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:40])
    made = files(tmp_path / "photos", "method.schedule=vanilla", "data.validation=0")
    train(made, tmp_path / "run")
    printed = " ".join(capsys.readouterr().err.split())
    assert "cannot be decoded and were replaced" in printed and broken.name in printed


def test_a_damaged_test_image_is_named(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    broken = sorted((tmp_path / "photos/val").rglob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.warns(UserWarning, match=rf"1 of \d+ images .*{broken.name}"):
        result = quietly(files(tmp_path / "photos", "data.validation=0"), tmp_path / "run")
    assert result.test_accuracy is not None


@damaged
def test_too_many_damaged_images_stop_the_run(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for broken in sorted((tmp_path / "photos/train").rglob("*.jpg"))[::2]:
        broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be decoded"):
        quietly(files(tmp_path / "photos", "train.steps=9"), tmp_path / "run")


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.root=WHERE.*--dry-run"):
        quietly(tiny(*FILES), tmp_path / "run")


def test_training_images_are_no_test_images(photos: Path, tmp_path: Path) -> None:
    same = (f"data.files.test_root={photos / 'train'}",)
    with pytest.raises(DataError, match=r"data\.files\.test_root"):
        quietly(files(photos, *same), tmp_path / "run")


def test_other_classes_in_the_test_set(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    first = sorted((tmp_path / "photos/val").iterdir())[0]
    first.rename(first.with_name("zebra"))
    with pytest.raises(DataError, match=r"not the same ones.*zebra"):
        quietly(files(tmp_path / "photos"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data.crop_padding=4",), "data.crop_padding=0"),
        (("data.cutout=4",), "data.cutout=0"),
        (("method.view=plain", "train.mixup=0.2"), "method.view=none"),
        (("data.dataset=synthetic", "method.view=randaugment"), "method.view=plain or none"),
        (("data.files.eval_resize=8",), "eval_size"),
        (("data.files.area=[0.5, 0.2]",), "area"),
    ],
)
def test_settings_that_do_not_fit(photos: Path, overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConadvError, match=named):
        files(photos, *overrides)


# -- splits that people make, and images that move -------------------------------------------------


def test_images_called_test_are_tested_on(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train", tmp_path / "train")
    shutil.copytree(photos / "val", tmp_path / "test")
    splits = load_file_splits(files(tmp_path), CPU, World())
    assert len(splits.test()) == 12 and splits.train_count == 32


def test_without_test_images_those_held_out_stand_for_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "train", tmp_path / "train")
    splits = load_file_splits(files(tmp_path), CPU, World())
    held_out = splits.validation()
    assert held_out is not None
    for (images, labels), (same, same_labels) in zip(
        splits.test().batches(8, CPU), held_out.batches(8, CPU), strict=True
    ):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)
    assert "the test accuracy is that of validation" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"none to test on.*test_root=WHERE.*data\.validation=0\.1"):
        load_file_splits(files(tmp_path, "data.validation=0"), CPU, World())


def test_a_run_whose_images_moved_is_evaluated(photos: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(photos, before)
    quietly(files(before), tmp_path / "run")
    first = evaluate_run(tmp_path / "run", steps=0)
    before.rename(tmp_path / "after")
    with pytest.raises(DataError, match="before"):
        evaluate_run(tmp_path / "run", steps=0)
    moved = (f"data.root={tmp_path / 'after'}",)
    assert evaluate_run(tmp_path / "run", steps=0, overrides=moved) == first
    with pytest.raises(RecipeError, match=r"model\.name.*were trained without it. Allowed are"):
        evaluate_run(tmp_path / "run", overrides=["model.name=cifar/resnet20"])

"""ImageNet's archives as published, in tiny."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import FolderSource, ImageNetSource
from support.images import (
    CLASSES,
    KIT_NUMBERS,
    VAL_NUMBERS,
    devkit,
    imagenet_train,
    imagenet_val,
    tar_bytes,
    train_images,
    val_images,
)

NAMES = {number: name for name, number in KIT_NUMBERS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training images alone; tests of validation add the rest."""
    place = tmp_path / "imagenet"
    place.mkdir()
    imagenet_train(place)
    return place


@pytest.fixture
def validation(folder: Path) -> Path:
    pytest.importorskip("scipy")
    imagenet_val(folder)
    devkit(folder)
    return folder


def unpacked(root: Path, images: dict[str, bytes]) -> FolderSource:
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return FolderSource(root)


def test_training_images_are_those_of_the_unpacked_folder(folder: Path, said, tmp_path) -> None:
    source = ImageNetSource(folder, "train", said.append)
    expected = unpacked(tmp_path / "unpacked", train_images())
    assert (source.name, source.classes) == ("imagenet-train", CLASSES)
    assert source.labels.tolist() == expected.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [source.read(i) for i in range(6)] == [expected.read(i) for i in range(6)]
    assert source.fingerprint == expected.fingerprint
    path = folder / "ILSVRC2012_img_train.tar"
    assert source.where(3) == f"{path}::n01443537/n01443537_9.JPEG"
    with pytest.raises(IndexError):
        source.read(6)


def test_validation_labels_follow_the_kit(validation: Path, said, tmp_path) -> None:
    source = ImageNetSource(validation, "val", said.append)
    images = {
        f"{NAMES[number]}/ILSVRC2012_val_{i + 1:08d}.JPEG": content
        for i, (number, content) in enumerate(zip(VAL_NUMBERS, val_images(), strict=True))
    }
    expected = unpacked(tmp_path / "unpacked", images)
    assert (source.name, source.classes) == ("imagenet-val", CLASSES)
    assert source.labels.tolist() == expected.labels.tolist() == [0, 1, 2, 2]
    assert [source.read(i) for i in range(4)] == [expected.read(i) for i in range(4)]
    assert source.fingerprint == expected.fingerprint
    assert source.where(0).endswith("ILSVRC2012_img_val.tar::ILSVRC2012_val_00000003.JPEG")


def test_both_splits_share_one_index_made_once(validation: Path, said: list[str]) -> None:
    for _ in range(2):
        for split in ("train", "val"):
            ImageNetSource(validation, split, said.append)
    assert ["indexing" in line for line in said] == [True, True]


def test_threads_and_pickles(folder: Path, said) -> None:
    source = ImageNetSource(folder, "train", said.append)
    expected = [content for _, content in sorted(train_images().items())]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy.classes == source.classes
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.read, list(range(6)) * 50)) == expected * 50


def test_an_archive_that_changes_while_it_is_used(folder: Path, said) -> None:
    source = ImageNetSource(folder, "train", said.append)
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match=r"img_train\.tar has changed since it was indexed"):
        source.read(0)
    assert len(ImageNetSource(folder, "train", said.append).read(0)) > 0
    assert len(said) == 2


def test_what_is_missing_is_named(folder: Path, said) -> None:
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val\.tar is missing: fetch it from"):
        ImageNetSource(folder, "val", said.append)
    imagenet_val(folder)
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12\.tar\.gz is missing"):
        ImageNetSource(folder, "val", said.append)
    with pytest.raises(ValueError, match="train and val, not 'test'"):
        ImageNetSource(folder, "test", said.append)


def test_an_archive_that_is_not_as_published(folder: Path, said) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes([("n01440764_1.JPEG", b"x")]))
    with pytest.raises(DataError, match=r"holds n01440764_1\.JPEG, but .* one archive per class"):
        ImageNetSource(folder, "train", said.append)
    path.write_bytes(tar_bytes([]))
    with pytest.raises(DataError, match="there are no images in it"):
        ImageNetSource(folder, "train", said.append)


def test_a_download_cut_off_is_named(folder: Path, said) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(DataError, match=r"img_train\.tar is damaged, cut off"):
        ImageNetSource(folder, "train", said.append)


# -- the development kit ---------------------------------------------------------------------------


def test_labels_and_images_have_to_be_as_many(validation: Path, said) -> None:
    devkit(validation, VAL_NUMBERS[:3])
    with pytest.raises(DataError, match=r"img_val\.tar holds 4 images, but .* labels for 3"):
        ImageNetSource(validation, "val", said.append)


def test_without_scipy(folder: Path, said, monkeypatch) -> None:
    imagenet_val(folder)
    devkit(folder, table=b"never read")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match="Type: pip install scipy"):
        ImageNetSource(folder, "val", said.append)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": (1, 2, 3, 9)}, "validation_ground_truth.txt names class 9"),
        ({"truth": ("x",)}, "validation_ground_truth.txt names class"),
        ({"truth": (4, 1, 1, 1)}, "names class 4"),  # a group of classes has no images
        ({"table": b"no MATLAB file"}, "meta.mat"),
    ],
)
def test_a_kit_that_is_damaged(validation: Path, said, options, message: str) -> None:
    devkit(validation, **options)
    with pytest.raises(DataError, match=rf"devkit_t12\.tar\.gz is damaged .*{message}"):
        ImageNetSource(validation, "val", said.append)


def test_a_kit_cut_off_or_of_another_kind(validation: Path, said) -> None:
    path = validation / "ILSVRC2012_devkit_t12.tar.gz"
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:60] + b"?" * 200):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz is damaged"):
            ImageNetSource(validation, "val", said.append)

"""Which set a folder is, and what its class folders mean."""

from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet import VARIANTS, ImageSet, find_sets
from conadv.trainer.evaluation.imagenet.classes import wnids, wnids_of_a, wnids_of_r
from conadv.trainer.evaluation.imagenet.variants import named
from trainer.evaluation.imagenet.conftest import MakeFolders

NUMBERS = [str(number) for number in range(1000)]


def test_every_plain_set_is_recognised(make_folders: MakeFolders) -> None:
    layouts = {
        "val": (wnids(), "ILSVRC2012_val_00000293.JPEG"),
        "sketch": (wnids(), "sketch_0.JPEG"),
        "a": (wnids_of_a(), "0.000116_digital clock _ digital clock_0.865662.jpg"),
        "r": (wnids_of_r(), "art_0.jpg"),
    }
    for name, (folders, file) in layouts.items():
        root = make_folders(name, folders, file)
        (root / "README.txt").touch()
        (root / ".hidden").mkdir()
        [found] = find_sets(root)
        assert (found.variant.name, found.part, found.folder) == (name, "", root)
        assert find_sets(root, name) == (found,)


def test_numbered_folders_mean_numbers_and_not_their_place(make_folders: MakeFolders) -> None:
    root = make_folders("imagenetv2-top-images-format-val", NUMBERS)
    [found] = find_sets(root)
    assert (found.variant.name, found.part) == ("v2", "top-images")
    alphabetical = sorted(NUMBERS)
    assert alphabetical[2] == "10"
    assert found.class_indices(alphabetical) == tuple(map(int, alphabetical))


def test_a_loader_of_200_classes_gets_the_numbers_among_1000() -> None:
    folders = sorted(wnids_of_a())
    indices = ImageSet(VARIANTS["a"]).class_indices(folders)
    assert [wnids()[number] for number in indices] == folders
    assert ImageSet(VARIANTS["a"]).variant.classes == indices
    assert ImageSet(VARIANTS["val"]).class_indices(["n15075141", "n01440764"]) == (999, 0)
    with pytest.raises(DataError, match=r"no class 'cat' \(1 of 2 names"):
        ImageSet(VARIANTS["val"]).class_indices(["n01440764", "cat"])


def test_subsets_of_v2_side_by_side(make_folders: MakeFolders) -> None:
    top = make_folders("v2/imagenetv2-top-images-format-val", NUMBERS)
    make_folders("v2/imagenetv2-matched-frequency", NUMBERS)
    found = find_sets(top.parent)
    assert [one.part for one in found] == ["matched-frequency", "top-images"]
    assert found[1].folder == top
    assert find_sets(top.parent, "v2/top-images") == found[1:]
    with pytest.raises(DataError, match=r"holds matched-frequency, top-images, but not threshold"):
        find_sets(top.parent, "v2/threshold-0.7")


def test_a_subset_of_v2_whose_name_is_lost(make_folders: MakeFolders) -> None:
    root = make_folders("v2", NUMBERS)
    with pytest.raises(DataError, match="say which part this is, such as v2/matched-frequency"):
        find_sets(root)
    [found] = find_sets(root, "v2/matched-frequency")
    assert found.folder == root


def test_corruptions_with_and_without_the_folders_of_the_archives(
    make_folders: MakeFolders,
) -> None:
    make_folders("c/fog/3", wnids())
    make_folders("c/noise/shot_noise/1", wnids())
    root = make_folders("c/speckle_noise/1", ["anything"]).parents[1]
    found = find_sets(root)
    assert [one.part for one in found] == ["shot_noise/1", "fog/3"]
    assert [one.part for one in find_sets(root / "fog" / "3", "c/fog/3")] == ["fog/3"]
    (root / "fog" / "3" / "n01440764").rmdir()
    with pytest.raises(DataError, match=r"fog/3 should hold.*1 are missing: n01440764\."):
        find_sets(root)


def test_an_incomplete_set_is_refused(make_folders: MakeFolders) -> None:
    root = make_folders("a", [*wnids_of_a()[3:], "cats"])
    with pytest.raises(DataError, match=r"holds cats, n0.* and 195 more, which is no known"):
        find_sets(root)
    with pytest.raises(DataError, match=r"3 are missing: n0.*, and 1 do not belong there: cats"):
        find_sets(root, "a")
    with pytest.raises(DataError, match="should hold the 200 class folders of ImageNet-R"):
        find_sets(root, "r")


def test_training_images_are_not_taken_for_validation(make_folders: MakeFolders) -> None:
    root = make_folders("train", wnids(), "n01440764_10026.JPEG")
    with pytest.raises(DataError, match="n01440764_10026.JPEG, which is neither"):
        find_sets(root)


def test_validation_images_without_folders(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(DataError, match="without folders: sort them"):
        find_sets(tmp_path, "val")
    with pytest.raises(DataError, match="holds no folders, which is no known test set"):
        find_sets(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("skech", r"No test set 'skech': there are val, v2.*Did you mean sketch\?"),
        ("c/fogg/3", "give a name such as c/fog/3"),
        ("val/1", "give a name such as val"),
    ],
)
def test_names_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        named(name)


def test_every_part_has_a_name_of_its_own() -> None:
    names = [(v.name, part, ImageSet(v, part).title) for v in VARIANTS.values() for part in v.parts]
    assert len(names) == len({title for _, _, title in names}) == 1 + 3 + 1 + 1 + 1 + 75
    with pytest.raises(DataError, match="does not exist"):
        find_sets("/no/such/folder")

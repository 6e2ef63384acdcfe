"""ReaL labels: the published file, and what counts as right."""

import json
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet import RealLabels, load_real_labels

TOY = RealLabels(((), (970, 795), (230,)))


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_the_published_labels() -> None:
    found = load_real_labels()
    assert (len(found.labels), found.counted) == (50_000, 46_837)
    assert found.labels[:4] == ((), (970, 795), (230, 231), (809,))


def test_an_image_is_known_by_its_name_alone() -> None:
    right = TOY.members([f"n01440764/{name(2)}", name(1), f"a\\{name(3)}", name(2)[:-5]])
    assert right.shape == (4, 1000)
    assert [row.nonzero().flatten().tolist() for row in right] == [
        [795, 970],
        [],
        [230],
        [795, 970],
    ]


@pytest.mark.parametrize(
    "bad", [name(0), name(4), "ILSVRC2012_test_00000001.JPEG", f"x{name(1)}", f"{name(1)}.txt", ""]
)
def test_other_names_are_refused(bad: str) -> None:
    with pytest.raises(DataError, match="give names from .*00000001.JPEG to .*00000003.JPEG"):
        TOY.members([bad])


def test_a_given_file(tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    labels = [[number % 1000] for number in range(50_000)]
    path.write_text(json.dumps(labels))
    assert load_real_labels(path).labels[1234] == (234,)
    for content, message in [
        ("[", "is no JSON"),
        ("{}", "holds no list"),
        ("[[1]]", "holds 1 entries"),
        (json.dumps([*labels[:-1], [1000]]), "50,000 entries, but .* between 0 and 999"),
        (json.dumps([*labels[:-1], [True]]), "50,000 entries"),
        (json.dumps([*labels[:-1], 7]), "50,000 entries"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            load_real_labels(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_real_labels(tmp_path / "missing.json")

"""Patterns for shards."""

from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import expand_braces
from conadv.trainer.data.sources.patterns import local_shards, shards_of, split_of


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{5..5}", ["5"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["{1..", "1}", "{{1..2}}", "{}", "{a}", "{3..1}", "{0..99999999}", "{1..x}"]
)
def test_braces_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(DataError, match="brace|range"):
        expand_braces(pattern)


def test_too_many_names() -> None:
    with pytest.raises(DataError, match="100,000,000 shards"):
        expand_braces("{0..9999}-{0..9999}")


def test_local_files(tmp_path: Path) -> None:
    for name in ("b-0.tar", "a-1.tar", "a-0.tar", "[x].tar"):
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [path.name for path in local_shards(str(tmp_path / pattern))]

    assert (
        found("a-*.tar") == found("a-{0..1}.tar") == found("a-[01].tar") == ["a-0.tar", "a-1.tar"]
    )
    assert found("{b,a}-*.tar") == ["a-0.tar", "a-1.tar", "b-0.tar"]
    assert found("[x].tar") == ["[x].tar"]  # a name, not a pattern, if there is such a file
    with pytest.raises(DataError, match=r"2 of 4 shards are missing, the first is .*a-2\.tar"):
        found("a-{0..3}.tar")
    with pytest.raises(DataError, match="1 of 1 shards are missing"):
        found("c-*.tar")


def test_the_split_in_a_name() -> None:
    names = {
        "imagenet1k-train-0000.tar": "train",
        "imagenet1k-validation-00.tar": "val",
        "val_001.tar": "val",
        "constrained-1.tar": None,
        "shard-000000.tar": None,
        "test.tar": "test",
    }
    assert {name: split_of(name) for name in names} == names


def test_shards_of_a_split(tmp_path: Path) -> None:
    for name in ("x-train-1.tar", "x-train-0.tar", "x-val-0.tar", ".hidden.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in shards_of(tmp_path, "train")] == ["x-train-0.tar", "x-train-1.tar"]
    assert [p.name for p in shards_of(tmp_path, "val")] == ["x-val-0.tar"]
    with pytest.raises(DataError, match="holds shards of train, val, and none of 'test'"):
        shards_of(tmp_path, "test")

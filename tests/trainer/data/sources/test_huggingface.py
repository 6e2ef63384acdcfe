"""Data sets of the hub: a stand-in for the package, and the package where it is installed."""

import pickle
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import HuggingFaceSource, open_source, write_shards
from support.images import encoded


class Image:
    """Stands for datasets.Image."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    """Stands for datasets.ClassLabel."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Rows:
    """Stands for datasets.Dataset: rows, features, columns by name."""

    def __init__(self, cells, features=None, labels=(0, 1, 0), decode: bool = True) -> None:
        self.features = features or {"image": Image(), "label": ClassLabel(["cat", "owl"])}
        self.cells, self.labels, self.decode = cells, labels, decode

    def cast_column(self, column: str, feature: Image) -> "Rows":
        assert self.features[column].decode
        return Rows(self.cells, self.features, self.labels, feature.decode)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key):
        if isinstance(key, str):
            return list(self.labels)
        assert not self.decode, "the image would be decoded"
        [image] = [c for c, f in self.features.items() if isinstance(f, Image)]
        return {image: self.cells[key]}


def cells() -> list[dict[str, object]]:
    return [{"bytes": encoded(i), "path": None} for i in range(3)]


@pytest.fixture
def hub(monkeypatch):
    """Puts a function in the place of datasets.load_dataset; gives what it was asked for."""

    def put(splits: dict[str, Rows]) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def load_dataset(name: str, split: str) -> Rows:
            asked.append((name, split))
            if name == "nobody/none":
                raise FileNotFoundError("no such data set")
            if split not in splits:
                raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
            return splits[split]

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return asked

    return put


def test_images_as_they_were_stored(hub) -> None:
    asked = hub({"train": Rows(cells())})
    source = open_source("hf://me/pets", "train")
    assert asked == [("me/pets", "train")]
    assert (source.name, source.classes, len(source)) == ("hf://me/pets:train", ("cat", "owl"), 3)
    assert source.labels.tolist() == [0, 1, 0]
    assert [source.read(i) for i in range(3)] == [encoded(i) for i in range(3)]
    assert source.where(2) == "hf://me/pets:train::2"
    for wrong in (3, -1):
        with pytest.raises(IndexError, match="has 3 images"):
            source.read(wrong)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(1) == encoded(1) and copy.fingerprint == source.fingerprint


def test_splits(hub) -> None:
    asked = hub({"validation": Rows(cells()), "test": Rows(cells())})
    assert open_source("hf://pets", "val").name == "hf://pets:validation"
    assert asked == [("pets", "val"), ("pets", "validation")]
    assert open_source("hf://pets:test", "val").name == "hf://pets:test"
    with pytest.raises(DataError, match=r"could not be loaded \(train: ValueError: Unknown split"):
        open_source("hf://pets", "train")
    with pytest.raises(DataError, match="none could not be loaded .*no such data set.*Check the"):
        open_source("hf://nobody/none", "val")
    assert asked[-1] == ("nobody/none", "val") != asked[-2]  # asked once
    with pytest.raises(DataError, match="write hf://name"):
        open_source("hf://", "train")


def test_without_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="Type: pip install datasets"):
        open_source("hf://me/pets", "train")


def test_columns() -> None:
    two = {"img": Image(), "fine": ClassLabel(["a", "b"]), "coarse": ClassLabel(["x", "y"])}
    with pytest.raises(DataError, match="one column of the feature ClassLabel, it has fine, coars"):
        HuggingFaceSource(Rows(cells(), two), "pets")
    assert HuggingFaceSource(Rows(cells(), two), "pets", label="coarse").classes == ("x", "y")
    with pytest.raises(DataError, match="ClassLabel"):
        HuggingFaceSource(Rows(cells(), two), "pets", label="img")
    with pytest.raises(DataError, match=r"feature Image, its columns are \['label'\]"):
        HuggingFaceSource(Rows(cells(), {"label": ClassLabel(["a"])}), "pets")
    usual = {"image": Image(), "label": ClassLabel(["a", "b"]), "coarse": ClassLabel(["x"])}
    assert HuggingFaceSource(Rows(cells(), usual), "pets").classes == ("a", "b")


@pytest.mark.parametrize("labels", [(0, -1, 1), (0, None, 1)])
def test_images_without_labels_are_refused(labels) -> None:
    with pytest.raises(DataError, match="pets: a label is -1"):
        HuggingFaceSource(Rows(cells(), labels=labels), "pets")


def test_rows_that_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(9))
    rows = [
        {"bytes": None, "path": str(tmp_path / "1.jpg")},
        {"bytes": None, "path": str(tmp_path / "2.jpg")},
        None,
    ]
    source = HuggingFaceSource(Rows(rows), "pets")
    assert source.read(0) == encoded(9)
    with pytest.raises(DataError, match=r"2\.jpg could not be read"):
        source.read(1)
    with pytest.raises(DataError, match="pets::2 has neither bytes nor a path"):
        source.read(2)


def test_the_fingerprint_follows_sizes_and_labels() -> None:
    longer = [*cells()[:2], {"bytes": b"x", "path": None}]
    made = [Rows(cells()), Rows(cells(), labels=(1, 1, 0)), Rows(longer)]
    assert len({HuggingFaceSource(rows, "pets").fingerprint for rows in made}) == 3


class Many(Rows):
    """Rows that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))

    def __getitem__(self, key):
        if isinstance(key, str):
            return (index % 2 for index in range(len(self)))
        return {"image": {"bytes": b"x" * (key % 1000)}}

    def cast_column(self, column: str, feature: Image) -> "Many":
        return Many(len(self))


def test_no_object_is_held_for_an_image() -> None:
    """Nor while it is opened: labels and sizes are numbers of 8 bytes."""
    peaks = []
    for count in (10, 20_000, 40_000):  # the first one imports things
        tracemalloc.start()
        assert len(HuggingFaceSource(Many(count), "pets")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 20 * 20_000


def test_shards_of_it(tmp_path: Path, said) -> None:
    source = HuggingFaceSource(Rows(cells()), "pets")
    write_shards(source, tmp_path)
    back = open_source(tmp_path, "train", said.append)
    assert back.where(0).endswith(".jpg")
    assert sorted(back.read(i) for i in range(3)) == sorted(encoded(i) for i in range(3))


@pytest.mark.filterwarnings("ignore")
def test_the_package_itself() -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["cat", "owl"])
    whole = datasets.Dataset.from_dict(
        {"image": cells(), "label": [0, 1, 0]},
        features=datasets.Features({"image": datasets.Image(), "label": labels}),
    )
    source = HuggingFaceSource(whole, "pets")
    same = HuggingFaceSource(Rows(cells()), "pets")
    assert source.fingerprint == same.fingerprint and source.classes == same.classes
    assert [source.read(i) for i in range(3)] == [encoded(i) for i in range(3)]
    chosen = HuggingFaceSource(whole.select([2, 1]), "pets")
    assert chosen.labels.tolist() == [0, 1] and chosen.read(0) == encoded(2)
    assert pickle.loads(pickle.dumps(source)).read(1) == encoded(1)


def test_columns_are_chosen_by_name(hub) -> None:
    two = {"image": Image(), "fine": ClassLabel(["cat", "owl"]), "coarse": ClassLabel(["x", "y"])}
    hub({"train": Rows(cells(), two)})
    with pytest.raises(DataError, match=r"it has fine, coarse.*data\.files\.label_column=NAME"):
        open_source("hf://pets", "train")
    assert open_source("hf://pets", "train", label_column="coarse").classes == ("x", "y")


def test_whole_numbers_are_labels_too(hub) -> None:
    whole = {"image": Image(), "label": SimpleNamespace(dtype="int64")}
    hub({"train": Rows(cells(), whole), "gap": Rows(cells(), whole, (0, 15_000_000, 0))})
    assert open_source("hf://pets", "train").classes == ("0", "1")
    with pytest.raises(DataError, match="labels go up to 15,000,000.*class 1 is the first"):
        open_source("hf://pets:gap", "train")

"""Data sets of the Hugging Face hub, through the package `datasets`."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conadv.errors import DataError
from conadv.trainer.data.sources.handles import unreadable
from conadv.trainer.data.sources.patterns import SPLITS, NoSuchSplitError
from conadv.trainer.data.sources.source import (
    PART,
    LabelledSource,
    check_classes_used,
    check_labels,
    fingerprint_of,
    pack_names,
)

PREFIX = "hf://"


class HuggingFaceSource(LabelledSource):
    """Images of a `datasets.Dataset`, as they were stored, not decoded.

    Args:
        dataset: has ``features``, a length, and rows; `load_hub` gives one.
        name: what the source is called.
        image: the column of images; None: the only one.
        label: the column of labels, a ClassLabel or whole numbers from 0; None: ``label`` or
            ``labels``, or the only ClassLabel.

    Raises:
        DataError: there is no such column, or several could be meant, an image has no label, or
            a class no image.
    """

    def __init__(
        self, dataset: Any, name: str, image: str | None = None, label: str | None = None
    ) -> None:
        self.name = name
        features: dict[str, Any] = dict(dataset.features)
        self._image = _column(name, features, "Image", image, ())
        column = _label_column(name, features, label)
        # As stored: decoding would lose the bytes, and encode them again when they are wanted.
        self._rows = dataset.cast_column(self._image, type(features[self._image])(decode=False))
        values = (-1 if value is None else int(value) for value in dataset[column])
        labels = np.fromiter(values, dtype=np.int64, count=len(dataset))
        if hasattr(features[column], "names"):
            self.classes = tuple(str(c) for c in features[column].names)
        else:
            self.classes = tuple(str(c) for c in range(check_classes_used(name, labels)))
        self.labels = check_labels(name, labels, self.classes)
        names = (pack_names([f"{index:08d}" for index in part]) for part in self._parts())
        self.fingerprint = fingerprint_of(names, self._sizes(), labels)

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            DataError: it cannot be read.
            IndexError: no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, asked for number {index}.")
        cell = self._rows[index][self._image]
        if cell is not None and cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if cell is None or not cell.get("path"):
            raise DataError(f"{self.where(index)} has neither bytes nor a path: leave it out.")
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise unreadable(cell["path"], error) from error

    def where(self, index: int) -> str:
        """The data set's name and the row."""
        return f"{self.name}::{index}"

    def _parts(self) -> Iterator[range]:
        """Rows, some at a time."""
        for first in range(0, len(self), PART):
            yield range(first, min(first + PART, len(self)))

    def _sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each image; 0 where a row names a file, whose size may be far away."""
        if not hasattr(self._rows, "with_format"):
            cells = (self._rows[index][self._image] for index in range(len(self)))
            lengths = (len((cell or {}).get("bytes") or b"") for cell in cells)
            return np.fromiter(lengths, dtype=np.int64, count=len(self))
        compute: Any = importlib.import_module("pyarrow.compute")
        rows, sizes = self._rows.with_format("arrow"), np.empty(len(self), dtype=np.int64)
        for part in self._parts():  # where rows were chosen or mixed, each part is copied
            # Arrow knows the lengths without looking at the images.
            cells = rows[part.start : part.stop].column(self._image)
            lengths = compute.binary_length(compute.struct_field(cells, "bytes"))
            sizes[part.start : part.stop] = compute.fill_null(lengths, 0).to_numpy()
        return sizes


def _column(
    name: str, features: dict[str, Any], kind: str, given: str | None, usual: Sequence[str]
) -> str:
    columns = [c for c, feature in features.items() if type(feature).__name__ == kind]
    candidates = [c for c in usual if c in columns][:1] or columns
    if given is not None:
        candidates = [given] if given in columns else []
    if len(candidates) != 1:
        what = f"it has {', '.join(columns)}" if columns else f"its columns are {list(features)}"
        raise DataError(
            f"{name} needs one column of the feature {kind}, {what}. Choose with "
            f"data.files.{'image' if kind == 'Image' else 'label'}_column=NAME (in Python: "
            "HuggingFaceSource(dataset, name, image=..., label=...))."
        )
    return candidates[0]


def _label_column(name: str, features: dict[str, Any], given: str | None) -> str:
    """A ClassLabel, or whole numbers where the column is named or called as labels are."""
    whole = [c for c, f in features.items() if "int" in str(getattr(f, "dtype", ""))]
    if given in whole:
        return str(given)
    labelled = any(type(feature).__name__ == "ClassLabel" for feature in features.values())
    if given is None and not labelled:
        for usual in ("label", "labels"):
            if usual in whole:
                return usual
    return _column(name, features, "ClassLabel", given, ("label", "labels"))


def load_hub(
    where: str, split: str, image: str | None = None, label: str | None = None
) -> HuggingFaceSource:
    """The source that ``hf://name[:split]`` stands for.

    Args:
        where: such as ``hf://timm/mini-imagenet`` or ``hf://uoft-cs/cifar10:test``.
        split: which split, if `where` names none; ``"val"`` also finds ``validation``.
        image: the column of images, see `HuggingFaceSource`.
        label: the column of labels, likewise.

    Raises:
        DataError: `datasets` is not installed, or the data set or split cannot be had.
    """
    name, _, chosen = where.removeprefix(PREFIX).partition(":")
    if not name:
        raise DataError(f"{where}: write hf://name or hf://name:split.")
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{where} needs the package datasets, which is not installed. Type: pip install "
            "datasets"
        ) from error
    reasons: list[str] = []
    for candidate in [chosen] if chosen else SPLITS.get(split, (split,)):
        try:
            dataset = datasets.load_dataset(name, split=candidate)
        except Exception as error:  # of many kinds: the hub, the network, the disk
            reasons.append(f"{candidate}: {type(error).__name__}: {error}")
            if "split" not in str(error).lower():
                break  # another split would fail in the same way, after as long a wait
            continue
        return HuggingFaceSource(dataset, f"{PREFIX}{name}:{candidate}", image, label)
    kind = NoSuchSplitError if all("split" in reason.lower() for reason in reasons) else DataError
    raise kind(
        f"{where} could not be loaded ({'; '.join(reasons)}). Check the name and the split, the "
        "network, and that you may read it (`hf auth login`)."
    )

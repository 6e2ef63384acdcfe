"""ReaL: ImageNet's validation images with every label that fits (arXiv 2006.07159)."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet.classes import CLASSES, shipped

IMAGES = 50_000
"""Validation images; 46,837 of them have a label."""
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?:\.\w+)?")


@dataclass(frozen=True)
class RealLabels:
    """The classes that people found in each validation image, some in none.

    Args:
        labels: Classes of ``ILSVRC2012_val_00000001.JPEG``, of ``...002.JPEG``, and so on.
    """

    labels: tuple[tuple[int, ...], ...]

    @property
    def counted(self) -> int:
        """Images that have a label; the others are left out of the score."""
        return sum(map(bool, self.labels))

    def members(self, names: Sequence[str]) -> Tensor:
        """Which classes are right for each image: bool, shape (N, 1000), on the CPU.

        A row without any class is an image to leave out.

        Args:
            names: Such as ``ILSVRC2012_val_00000293.JPEG``, folders before it allowed.

        Raises:
            DataError: A name has no number of a validation image in it.
        """
        # The numbers count validation images in the order of publication. A loader that sorts by
        # class has another order, so that only the name can tell which image it is.
        sets = [self.labels[self._position(name)] for name in names]
        right = torch.zeros(len(sets), CLASSES, dtype=torch.bool)
        rows = [row for row, classes in enumerate(sets) for _ in classes]
        columns = [number for classes in sets for number in classes]
        right[rows, columns] = True
        return right

    def _position(self, name: str) -> int:
        found = _NAME.fullmatch(name.replace("\\", "/").rpartition("/")[2])
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(self.labels):
            raise DataError(
                f"ReaL labels belong to the names of the validation images, and {name!r} is none: "
                f"give names from ILSVRC2012_val_{1:08d}.JPEG to "
                f"ILSVRC2012_val_{len(self.labels):08d}.JPEG."
            )
        return number - 1


def load_real_labels(path: Path | str | None = None) -> RealLabels:
    """Read the labels.

    Args:
        path: ``real.json`` of github.com/google-research/reassessed-imagenet; None takes the copy
            that timm ships.

    Raises:
        DataError: The file cannot be read or is another one, or timm is not installed.
    """
    file = shipped("imagenet_real_labels.json") if path is None else Path(path).expanduser()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}. Fetch it again.") from error
    if not isinstance(content, list) or len(content) != IMAGES or not all(map(_is_set, content)):
        size = f"{len(content):,} entries" if isinstance(content, list) else "no list"
        raise DataError(
            f"{file} holds {size}, but ReaL labels are a list of {IMAGES:,} lists of classes "
            f"between 0 and {CLASSES - 1}: give real.json as published."
        )
    return RealLabels(tuple(map(tuple, content)))


def _is_set(entry: object) -> bool:
    return isinstance(entry, list) and all(
        type(number) is int and 0 <= number < CLASSES for number in entry
    )

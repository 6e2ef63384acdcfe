"""A folder with one folder of image files per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from conadv.errors import DataError
from conadv.trainer.data.sources.handles import unreadable
from conadv.trainer.data.sources.source import (
    check_labels,
    fingerprint_of,
    is_image,
    pack_names,
    unpack_name,
)

_NAMED = 5
"""Empty classes that a message names; there may be a thousand."""


class FolderSource:
    """Images in the layout of torchvision's ImageFolder: ``root/class/file.jpg``.

    Classes are the folders' names, sorted; images are sorted by path within their class. Folders
    within a class count as part of it. Hidden files and files that are no images are left alone.

    Args:
        root: the folder of the class folders.
        name: what the source is called; None: the folder's name.

    Raises:
        DataError: there is no such folder, it has no class folders, or classes have no images.
    """

    def __init__(self, root: Path | str, name: str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.name = name or self.root.resolve().name
        self.classes = class_folders(self.root)
        if not self.classes:
            raise DataError(
                f"{self.root} has no class folders: give a folder that holds one folder of images "
                "per class, such as root/cat/1.jpg and root/dog/2.jpg."
            )
        names: list[str] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, folder in enumerate(self.classes):
            images = sorted(_images(self.root, folder))
            names += images
            labels += [label] * len(images)
            if not images:
                empty.append(folder)
        if empty:
            more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
            raise DataError(
                f"{self.root}: there are no images in {', '.join(empty[:_NAMED])}{more}: put "
                "images there, or remove these folders."
            )
        self.labels = check_labels(self.name, labels, self.classes)
        self._names = pack_names(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource`; asks for the size of every file, when first wanted.

        Raises:
            DataError: a file is gone, or may not be looked at.
        """
        sizes = np.empty(len(self), dtype=np.int64)
        for index in range(len(self)):
            try:
                sizes[index] = os.stat(self.where(index)).st_size
            except OSError as error:
                raise unreadable(self.where(index), error) from error
        return fingerprint_of(self._names, sizes, self.labels)

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            DataError: the file cannot be read.
            IndexError: no such image.
        """
        path = Path(self.where(index))
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error

    def where(self, index: int) -> str:
        """The path of an image."""
        return str(self.root / unpack_name(self._names[index]))


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: there is no such folder, or it may not be looked at.
    """
    try:
        with os.scandir(root) as entries:
            return tuple(
                sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
            )
    except OSError as error:
        raise unreadable(root, error) from error


def _images(root: Path, folder: str) -> Iterator[str]:
    """Paths of the images of a class, from the root on, with slashes on every platform."""

    def fail(error: OSError) -> None:  # os.walk would leave the folder out in silence
        raise unreadable(error.filename, error) from error

    for place, _, files in os.walk(root / folder, onerror=fail, followlinks=True):
        inner = Path(place).relative_to(root).as_posix()
        for file in files:
            if is_image(file):
                yield f"{inner}/{file}"

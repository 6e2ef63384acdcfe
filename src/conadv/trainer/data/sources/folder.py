"""A folder with one folder of image files per class."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, say_to_stderr
from conadv.trainer.data.sources.handles import unreadable
from conadv.trainer.data.sources.source import (
    LabelledSource,
    LeftOut,
    check_labels,
    extension_of,
    fingerprint_of,
    is_image,
    kind_of,
    pack_names,
    unpack_name,
)

LITTER = frozenset({"@eaDir", "#recycle", "__MACOSX", "Thumbs.db", "desktop.ini"})
"""What file servers and systems leave in folders of images."""
_NAMED = 5
"""Empty classes that a message names; there may be a thousand."""


class FolderSource(LabelledSource):
    """Images in the layout of torchvision's ImageFolder: ``root/class/file.jpg``.

    Classes are the folders' names, sorted; images are sorted by path within their class. Folders
    within a class count as part of it, each real folder once however many links lead to it.
    Thumbnails that a file server left (``@eaDir``), hidden files and files that are no images are
    left out; those that a person may have meant are counted and told. A file without an extension
    is an image if it begins like one.

    Args:
        root: the folder of the class folders.
        name: what the source is called; None: the folder's name.
        say: told a line of text about what was left out.

    Raises:
        DataError: there is no such folder, it has no class folders, or classes have no images.
    """

    def __init__(self, root: Path | str, name: str | None = None, say: Say = say_to_stderr) -> None:
        self.root = Path(root).expanduser()
        self.name = name or self.root.resolve().name
        self.classes = class_folders(self.root)
        if not self.classes:
            raise DataError(
                f"{self.root} has no class folders: give a folder that holds one folder of images "
                "per class, such as root/cat/1.jpg and root/dog/2.jpg."
            )
        left_out = LeftOut()
        # Packed class by class: all names as objects would take much memory.
        parts = [pack_names(sorted(_images(self.root, c, left_out))) for c in self.classes]
        left_out.tell(self.root, say)
        counts = [len(part) for part in parts]
        if empty := [c for c, count in zip(self.classes, counts, strict=True) if not count]:
            more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
            raise DataError(
                f"{self.root}: there are no images in {', '.join(empty[:_NAMED])}{more}: put "
                "images there, or remove these folders."
            )
        labels = np.repeat(np.arange(len(parts), dtype=np.int64), counts)
        self.labels = check_labels(self.name, labels, self.classes)
        self._names = np.concatenate(parts)

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource`; asks for the size of every file, when first wanted.

        Raises:
            DataError: a file is gone, or may not be looked at.
        """
        sizes, labels = np.empty(len(self), dtype=np.int64), self.labels.numpy()
        for index in range(len(self)):
            try:
                sizes[index] = os.stat(self.where(index)).st_size
            except OSError as error:
                raise unreadable(self.where(index), error) from error
        return fingerprint_of([self._names], sizes, labels)

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
            return tuple(sorted(e.name for e in entries if e.is_dir() and not _is_litter(e.name)))
    except OSError as error:
        raise unreadable(root, error) from error


def _is_litter(folder: str) -> bool:
    """Whether a folder is what a system leaves behind: its images are thumbnails."""
    return folder.startswith(".") or folder in LITTER


def _images(root: Path, folder: str, left_out: LeftOut) -> Iterator[str]:
    """Paths of the images of a class, from the root on, with slashes on every platform."""

    def fail(error: OSError) -> None:  # os.walk would leave the folder out in silence
        raise unreadable(error.filename, error) from error

    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root / folder, onerror=fail, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link to a folder that was there before, perhaps above this one
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not _is_litter(f))
        inner = Path(place).relative_to(root).as_posix()
        for file in files:
            if is_image(file) or _nameless_image(place, file):
                yield f"{inner}/{file}"
            elif not file.startswith(".") and file not in LITTER:
                left_out.add(file)


def _nameless_image(place: str, file: str) -> bool:
    if file.startswith(".") or extension_of(file):
        return False
    path = os.path.join(place, file)
    try:
        with open(path, "rb") as opened:
            return kind_of(opened.read(16)) is not None
    except OSError as error:
        raise unreadable(path, error) from error

"""Images that lie in tar archives, read where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conadv.data.sources.handles import Handles, Stamp
from conadv.data.sources.source import Names, unpack_name


class ArchiveSource:
    """Images in archives, each a piece of a file.

    Args:
        name: what it is called.
        classes: names of the classes.
        labels: int64, shape (N,).
        fingerprint: see `ImageSource`.
        paths: the archives.
        stamps: of the archives, when they were indexed.
        archive: for each image the position of its archive in `paths`, shape (N,).
        names: the images' names in their archives, shape (N,).
        offsets: where in its archive an image begins, in bytes, shape (N,).
        sizes: in bytes, shape (N,).
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        labels: Tensor,
        fingerprint: str,
        *,
        paths: Sequence[Path],
        stamps: Sequence[Stamp],
        archive: npt.NDArray[np.int32],
        names: Names,
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.labels = labels
        self.fingerprint = fingerprint
        self._handles = Handles(paths, stamps)
        self._archive = archive
        self._names = names
        self._offsets = offsets
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            DataError: its archive cannot be read, or has changed.
            IndexError: no such image.
        """
        return self._handles.read(
            int(self._archive[index]), int(self._offsets[index]), int(self._sizes[index])
        )

    def where(self, index: int) -> str:
        """Archive::member."""
        path = self._handles.paths[int(self._archive[index])]
        return f"{path}::{unpack_name(self._names[index])}"

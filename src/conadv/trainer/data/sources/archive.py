"""Images in archives, and a table of them that all processes of a machine share.

The table is a file that is mapped into memory, not read: what a process holds for itself does not
grow with the number of images, and ranks and decoding workers of a machine share one copy.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, locked, write_whole
from conadv.trainer.data.sources.handles import Handles, Stamp
from conadv.trainer.data.sources.source import LabelledSource, Names, unpack_name
from conadv.trainer.data.sources.tar import WAIT_SECONDS, elsewhere, index_place

_FORMAT = 1
_ALIGNMENT = 64
_COLUMNS = ("labels", "names", "offsets", "sizes")


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images of archives, those of the first archive first. N of them.

    Args:
        classes: names of the classes.
        counts: how many images of each archive there are.
        left_out: files that are taken for no images, by reason.
        fingerprint: see `ImageSource`.
        labels: shape (N,).
        names: in their archives, shape (N,).
        offsets: where in its archive an image begins, in bytes, shape (N,).
        sizes: in bytes, shape (N,).
        path: the file that the arrays are mapped from; None: they are in memory.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    left_out: Mapping[str, int]
    fingerprint: str
    labels: npt.NDArray[np.int64]
    names: Names
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    path: Path | None = None

    def write(self, file: BinaryIO) -> None:
        """Write it into an empty file."""
        rest = {
            "classes": self.classes,
            "counts": self.counts,
            "left_out": dict(self.left_out),
            "fingerprint": self.fingerprint,
        }
        head = np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8)
        for array in (head, *(getattr(self, column) for column in _COLUMNS)):
            np.save(file, array, allow_pickle=False)
            file.write(bytes(-file.tell() % _ALIGNMENT))

    @classmethod
    def mapped(cls, path: Path) -> "ImageTable":
        """The table in a file. A damaged one raises almost anything."""
        arrays: list[npt.NDArray[Any]] = []
        with path.open("rb") as file:
            for name in ("head", *_COLUMNS):
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                mode: Literal["c", "r"] = "c" if name == "labels" else "r"  # torch wants to write
                arrays.append(np.memmap(path, dtype, mode, file.tell(), shape))
                end = file.tell() + arrays[-1].nbytes
                file.seek(end + -end % _ALIGNMENT)
        rest = json.loads(arrays[0].tobytes())
        columns = dict(zip(_COLUMNS, arrays[1:], strict=True))
        return cls(
            tuple(rest["classes"]),
            tuple(rest["counts"]),
            rest["left_out"],
            rest["fingerprint"],
            **columns,
            path=path,
        )


def kept_table(folder: Path, key: object, make: Callable[[], ImageTable], say: Say) -> ImageTable:
    """The table that `make` gives, mapped from a file if it was made before.

    The file lies beside the archives, or in `cache_dir` where that folder may not be written to.
    Of several processes one makes it, and the others wait. Tables of archives that have changed
    since stay: another machine may have mapped them.

    Args:
        folder: of the archives.
        key: all that the table follows from; its text tells one table from another.
        make: reads the archives' index.
        say: told what goes wrong.
    """
    number = hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:16]
    name = f".conadv-images-{number}.npy"

    def known() -> ImageTable | None:
        for place in (folder, elsewhere(folder)):
            with suppress(Exception):
                return ImageTable.mapped(place / name)
        return None

    if (found := known()) is not None:
        return found
    place = index_place(folder)
    with ExitStack() as held:
        try:
            held.enter_context(locked(place, say, WAIT_SECONDS))
        except DataError:  # the index says so, too
            return make()
        if (found := known()) is not None:  # another process has made it meanwhile
            return found
        made = make()
        try:
            write_whole(place / name, made.write)
            return ImageTable.mapped(place / name)
        except DataError as error:  # slower the next time, but nothing is wrong
            say(f"the table of images is not kept: {error}")
            return made


class ArchiveSource(LabelledSource):
    """Images in archives, each a piece of a file.

    Args:
        name: what it is called.
        table: of the images.
        paths: the archives.
        stamps: of the archives, when they were indexed.
    """

    def __init__(
        self, name: str, table: ImageTable, paths: Sequence[Path], stamps: Sequence[Stamp]
    ) -> None:
        self.name = name
        self.classes = table.classes
        self.fingerprint = table.fingerprint
        self._handles = Handles(paths, stamps)
        self._ends = np.cumsum(table.counts)
        self._take(table)

    def _take(self, table: ImageTable) -> None:
        self._table = table
        self.labels = torch.from_numpy(table.labels)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_table": self._table.path or self._table}
        del state["labels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        table = state.pop("_table")
        self.__dict__.update(state)
        self._take(ImageTable.mapped(table) if isinstance(table, Path) else table)

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            DataError: its archive cannot be read, or has changed.
            IndexError: no such image.
        """
        offset, size = int(self._table.offsets[index]), int(self._table.sizes[index])
        return self._handles.read(self._archive_of(index), offset, size)

    def where(self, index: int) -> str:
        """Archive::member."""
        path = self._handles.paths[self._archive_of(index)]
        return f"{path}::{unpack_name(self._table.names[index])}"

    def _archive_of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, asked for number {index}.")
        return int(np.searchsorted(self._ends, index, side="right"))

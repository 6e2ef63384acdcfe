"""Tiny encoded images, and folders and archives of them as they are published."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02084071")
KIT_NUMBERS = {"n01440764": 2, "n01443537": 3, "n02084071": 1}
"""The kit's own numbers are not in the order of the names."""
VAL_NUMBERS = (3, 1, 2, 1)


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    """An image whose bytes follow from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def image_folder(root: Path, counts: Mapping[str, int]) -> Path:
    """root/class/number.jpg."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03d}.jpg").write_bytes(encoded(100 * label + i))
    return root


def shard(path: Path, labels: Iterable[int], first: int = 0, kind: str = "jpg") -> Path:
    """A WebDataset shard; its images have the keys first, first + 1, ..."""
    members = []
    for key, label in enumerate(labels, first):
        members += [
            (f"{key:06d}.cls", str(label).encode()),
            (f"{key:06d}.json", b"{}"),
            (f"{key:06d}.{kind}", encoded(key)),
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def train_images() -> dict[str, bytes]:
    """class/file to content: two images of each class."""
    return {
        f"{name}/{name}_{10 - i}.JPEG": encoded(10 * label + i)
        for label, name in enumerate(CLASSES)
        for i in range(2)
    }


def val_images() -> list[bytes]:
    return [encoded(1000 + i) for i in range(len(VAL_NUMBERS))]


def imagenet_train(folder: Path) -> Path:
    """An archive of archives, neither sorted."""
    archives = []
    for name in reversed(CLASSES):
        inner = [(n.split("/")[1], b) for n, b in train_images().items() if n.startswith(name)]
        archives.append((f"{name}.tar", tar_bytes(inner)))
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes(archives))
    return path


def imagenet_val(folder: Path) -> Path:
    members = [(f"ILSVRC2012_val_{i + 1:08d}.JPEG", b) for i, b in enumerate(val_images())]
    path = folder / "ILSVRC2012_img_val.tar"
    path.write_bytes(tar_bytes(reversed(members)))
    return path


def devkit(folder: Path, truth: Iterable[int] = VAL_NUMBERS, table: bytes | None = None) -> Path:
    base = "ILSVRC2012_devkit_t12/data"
    lines = "".join(f"{number}\n" for number in truth)
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            (f"{base}/ILSVRC2012_validation_ground_truth.txt", lines.encode()),
            (f"{base}/meta.mat", kit_table() if table is None else table),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def kit_table() -> bytes:
    """meta.mat as MATLAB wrote it: a column of structs; the last groups two of the others."""
    from scipy.io import savemat

    rows = [(number, name, 0) for name, number in KIT_NUMBERS.items()] + [(4, "n00001740", 2)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.empty((len(rows), 1), dtype=fields)
    for i, (number, name, children) in enumerate(sorted(rows)):
        synsets[i, 0] = (float(number), name, "a word, another", float(children))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets}, do_compression=True)
    return buffer.getvalue()


def write_photos(root: Path, *, classes: int, each: int, seed: int = 0) -> Path:
    """Larger JPEGs of blurred noise, darker in one class than in the next: root/class_N/*.jpg."""
    numbers = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for i in range(each):
            coarse = numbers.integers(0, 128, (4, 5, 3), dtype=np.uint8)
            coarse += np.uint8(label * 127 // max(1, classes - 1))
            Image.fromarray(coarse).resize((40, 32)).save(folder / f"{i:03d}.jpg", quality=92)
    return root

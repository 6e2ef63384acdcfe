"""Thirty images of CIFAR-10's shape, and archives of them like those of its two sources."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
from PIL import Image


def arrays(seed=0):
    """Twenty training and ten test images, two and one of each class."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    return {
        "train_images": pixels[:20],
        "train_labels": labels[:20],
        "test_images": pixels[20:],
        "test_labels": labels[20:],
    }


def npm_archive() -> bytes:
    """The npm package's layout: PNG sheets with an image per row."""
    content = arrays()

    def png(images) -> bytes:
        sheet = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "PNG")
        return buffer.getvalue()

    members = {"package/test_batch.png": png(content["test_images"])}
    for i in range(5):
        rows = content["train_images"][i * 4 : i * 4 + 4]
        members[f"package/data_batch_{i + 1}.png"] = png(rows)
    for part in ("train", "test"):
        labels = content[f"{part}_labels"].tolist()
        members[f"package/{part}_lables.json"] = json.dumps(labels).encode()
    return _tar(members)


def published_archive(base="cifar-10-batches-py"):
    """The published layout: pickles; with it the MD5 sums, by name, that torchvision holds."""
    content = arrays()

    def batch(images, labels) -> bytes:
        return pickle.dumps({"data": images.reshape(len(images), -1), "labels": labels.tolist()})

    members = {
        f"data_batch_{i + 1}": batch(
            content["train_images"][i * 4 : i * 4 + 4], content["train_labels"][i * 4 : i * 4 + 4]
        )
        for i in range(5)
    }
    members["test_batch"] = batch(content["test_images"], content["test_labels"])
    members["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    sums = {name: hashlib.md5(raw).hexdigest() for name, raw in members.items()}
    return _tar({f"{base}/{name}": raw for name, raw in members.items()}), sums


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return gzip.compress(buffer.getvalue(), mtime=0)  # no date: the same bytes every time

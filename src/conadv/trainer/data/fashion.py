"""The embedded images: a class-balanced subset of Fashion-MNIST (MIT licence, Zalando SE)."""

import hashlib
import lzma
from importlib import resources

import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset

TRAIN, TEST, SIDE = 10_000, 2_000, 28
FILE = "fashion_mnist_subset.xz"
SHA256 = "b8df0d0b256ad1e34848e512b82501a43d6362a49b80ff09bd7749ab369e962a"
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load_fashion_subset(raw: bytes | None = None) -> ImageDataset:
    """The first 1,000 training and 200 test images of each class, in their original order.

    Args:
        raw: the compressed file's content; None reads the one in the package.

    Raises:
        DataError: the file is missing or damaged.
    """
    if raw is None:
        file = resources.files("conadv.trainer.data").joinpath("assets", FILE)
        if not file.is_file():
            raise DataError(f"The package lacks its images ({FILE}): install conadv again.")
        raw = file.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise DataError(f"The embedded images ({FILE}) are damaged: install conadv again.")
    content = torch.frombuffer(bytearray(lzma.decompress(raw)), dtype=torch.uint8)
    pixels = SIDE * SIDE
    sizes = [TRAIN * pixels, TEST * pixels, TRAIN, TEST]
    train, test, train_labels, test_labels = content.split(sizes)

    def images(flat: Tensor) -> Tensor:
        return flat.reshape(-1, 1, SIDE, SIDE)

    return ImageDataset(
        "fashion-mnist-subset",
        images(train),
        train_labels.long(),
        images(test),
        test_labels.long(),
        CLASSES,
        source="Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist (a subset)",
        licence="MIT, Copyright (c) 2017 Zalando SE",
    )

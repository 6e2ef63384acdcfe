"""Make the embedded images from Fashion-MNIST's four published files.

    python tools/make_fashion_subset.py FOLDER

FOLDER holds train-images-idx3-ubyte.gz and its three companions (from the project's own page, or
from Debian's package dataset-fashion-mnist). Takes the first 1,000 training and 200 test images
of each class, in their original order, and writes them without loss; prints the SHA-256 that
src/conadv/trainer/data/fashion.py must hold.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

TARGET = Path(__file__).parents[1] / "src/conadv/data/assets/fashion_mnist_subset.xz"


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: two zero bytes, the type, the number of dimensions, the sizes."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    sizes = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def subset(folder: Path, part: str, per_class: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """The first `per_class` images of each class, and their labels."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[chosen], labels[chosen]


def main() -> None:
    """Read, choose, compress, write."""
    folder = Path(sys.argv[1])
    train, train_labels = subset(folder, "train", 1000)
    test, test_labels = subset(folder, "t10k", 200)
    content = b"".join(a.tobytes() for a in (train, test, train_labels, test_labels))
    packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    TARGET.write_bytes(packed)
    print(f"{TARGET}: {len(packed)} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()

"""The script that made the embedded images, on a few made-up ones."""

import gzip
import hashlib
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from support.tools import load_tool

tool = load_tool("make_fashion_subset")


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zero bytes, 8 for bytes, the number of dimensions, the sizes."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def published(tmp_path: Path):
    """Four files of 40 training and 30 test images, as published."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 30)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.permutation(np.arange(count) % 10).astype(np.uint8)
        arrays[part] = (images, labels)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return tmp_path, arrays


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_the_first_of_each_class_in_their_order(published, part) -> None:
    folder, arrays = published
    images, labels = arrays[part]
    seen = dict.fromkeys(range(10), 0)
    expected = []
    for place, label in enumerate(labels):
        if seen[int(label)] < 2:
            seen[int(label)] += 1
            expected.append(place)
    got_images, got_labels = tool.subset(folder, part, 2)
    assert np.array_equal(got_images, images[expected])
    assert got_labels.tolist() == labels[expected].tolist()


def test_it_writes_images_then_labels_without_loss(
    published, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder, arrays = published
    target = tmp_path / "out.xz"
    monkeypatch.setattr(tool, "TARGET", target)
    monkeypatch.setattr(sys, "argv", ["make_fashion_subset.py", str(folder)])
    tool.main()
    content = lzma.decompress(target.read_bytes())
    (train, train_labels), (test, test_labels) = arrays["train"], arrays["t10k"]
    assert content == b"".join(a.tobytes() for a in (train, test, train_labels, test_labels))
    assert hashlib.sha256(target.read_bytes()).hexdigest() in capsys.readouterr().out

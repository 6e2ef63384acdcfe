"""Encoded images and sources of them, made up."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3) without hard edges, so that resizing methods agree."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        a, b, c, d = generator.uniform(2, 9, 4)
        channels.append(127 + 60 * np.sin(a * x + b * y) + 60 * np.cos(c * x - d * y))
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({"quality": 95} if form == "JPEG" else {}), **options)
    return file.getvalue()


@dataclass
class Encoded:
    """A source that holds its files in memory."""

    files: list[bytes]
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.labels = torch.arange(len(self.files)) * 10

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return self.files[index]

    def where(self, index: int) -> str:
        return f"made/{index}.jpg"


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    return smooth


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def source() -> Encoded:
    """22 small JPEGs of different sizes."""
    shapes = [(40 + 3 * i, 60 - i) for i in range(22)]
    return Encoded([encoded(Image.fromarray(smooth(*s, seed=i))) for i, s in enumerate(shapes)])

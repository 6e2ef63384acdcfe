"""What is done to a training image, and to one that is only evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conadv.data.decoding.crop import NUMBERS, Box, random_box
from conadv.data.decoding.decode import Interpolation, decode_centre, decode_crop
from conadv.data.decoding.operations import build_erasing, build_policy, check_policy
from conadv.data.decoding.streams import fractions, global_streams, image_words

# Words of an image's stream, always all of them, so that switching one thing off leaves the
# others as they were. What comes later has to be added at the end.
_FLIP, _INTERPOLATION, _POLICY, _ERASING, _BOX = 0, 1, 2, 3, 4
_WORDS = _BOX + NUMBERS


class Preparation(Protocol):
    """From the bytes of an image to the pixels that the network takes."""

    @property
    def size(self) -> int:
        """Height and width of the result."""
        ...

    def __call__(self, data: bytes, seed: int, step: int, place: int, view: int = 0) -> Tensor:
        """uint8, shape (size, size, 3); raises DecodeError."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """Training: random crop, resize, flip, policy, erasing.

    The random numbers of an image are a function of (seed, step, place, view); libraries that
    draw from global generators get them seeded from it, and put back afterwards. The order of
    the operations is that of torchvision's and timm's training scripts.

    Erasing works on bytes, before standardisation: with the default colour, ImageNet's mean, the
    result is that of the usual erasing with zeros afterwards, within half a grey level.

    Args:
        size: height and width of the result, in pixels.
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width / height of the crop.
        flip: mirror left to right with probability one half.
        policy: None, or one of torchvision's ``"randaugment"``, ``"autoaugment"`` (the ImageNet
            policy), ``"trivialaugment"``, ``"augmix"``, or one of timm's, written as timm does:
            ``"v0"``, ``"original-mstd0.5"``, ``"rand-m9-n2-mstd0.5"``, ``"augmix-m5-w4-d2"``.
        magnitude: of ``"randaugment"``, 0 to 30, and the severity of ``"augmix"``, 1 to 10; None:
            torchvision's (9 and 3). timm's are in its string.
        layers: operations per image of ``"randaugment"`` and chains of ``"augmix"``; None:
            torchvision's (2 and 3).
        erasing: probability of erasing a random rectangle (Zhong et al., arXiv 1708.04896).
        erasing_fill: its colour, red, green, blue, 0 to 255.
        interpolation: of the resize; ``"random"``: one of the two by chance, as timm does.
        exif: turn images as their EXIF orientation says; ImageNet practice is not to.

    Raises:
        ValueError: something out of range, or an unknown policy.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    policy: str | None = None
    magnitude: int | None = None
    layers: int | None = None
    erasing: float = 0.0
    erasing_fill: tuple[int, int, int] = (124, 116, 104)
    interpolation: Interpolation | Literal["random"] = "bilinear"
    exif: bool = False

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_interpolation(self.interpolation, ("bilinear", "bicubic", "random"))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: give 0 < smallest <= largest <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: give 0 < smallest <= largest.")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing={self.erasing}: give a probability, 0 to 1.")
        if len(self.erasing_fill) != 3 or not all(0 <= c <= 255 for c in self.erasing_fill):
            raise ValueError(f"erasing_fill={self.erasing_fill}: give three numbers, 0 to 255.")
        check_policy(self.policy, self.magnitude, self.layers)

    def __call__(self, data: bytes, seed: int, step: int, place: int, view: int = 0) -> Tensor:
        """One training image.

        Args:
            data: the file.
            seed: of the run.
            step: the training step, from 0.
            place: of the image among the step's images, from 0.
            view: another number below 16 gives a further, independent view.

        Returns:
            uint8 RGB, shape (size, size, 3).

        Raises:
            DecodeError: the bytes are no whole image.
            ValueError: a negative step or place, or a view too many.
        """
        words = image_words(seed, step, place, view, _WORDS)
        numbers = fractions(words)

        def choose(height: int, width: int) -> Box:
            return random_box(height, width, self.scale, self.ratio, numbers[_BOX:])

        interpolation: Interpolation = "bilinear"
        if self.interpolation == "random":
            interpolation = "bilinear" if numbers[_INTERPOLATION] < 0.5 else "bicubic"
        else:
            interpolation = self.interpolation
        pixels = decode_crop(data, choose, self.size, interpolation, exif=self.exif)
        if self.flip and numbers[_FLIP] < 0.5:
            pixels = pixels.flip(1)
        if self.policy is not None:
            operations = build_policy(
                self.policy, self.magnitude, self.layers, self.size, self.interpolation
            )
            with global_streams(int(words[_POLICY])):
                # On Pillow's images these operations are quicker than on tensors.
                pixels = torch.from_numpy(np.array(operations(Image.fromarray(pixels.numpy()))))
        if self.erasing > 0:
            erase = build_erasing(self.erasing, self.erasing_fill)
            with global_streams(int(words[_ERASING])):
                pixels = erase(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        return pixels.contiguous()


@dataclass(frozen=True)
class CentreCrop:
    """Evaluation: resize the shorter side, take the centre; nothing is random.

    Args:
        size: height and width of the result, in pixels.
        resize: what the shorter side becomes; `size` at least.
        interpolation: of the resize.
        exif: turn images as their EXIF orientation says; ImageNet practice is not to.

    Raises:
        ValueError: something out of range.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    exif: bool = False

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_interpolation(self.interpolation, ("bilinear", "bicubic"))
        if self.resize < self.size:
            raise ValueError(f"resize={self.resize}, size={self.size}: give resize >= size.")

    def __call__(
        self, data: bytes, seed: int = 0, step: int = 0, place: int = 0, view: int = 0
    ) -> Tensor:
        """uint8 RGB, shape (size, size, 3), of a file; the numbers change nothing.

        Raises:
            DecodeError: the bytes are no whole image.
        """
        return decode_centre(data, self.size, self.resize, self.interpolation, exif=self.exif)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size={size}: give pixels, 1 or more.")


def _check_interpolation(given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"interpolation={given!r}: allowed are {', '.join(allowed)}.")

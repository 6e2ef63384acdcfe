"""What is done to a training image, and to one that is only evaluated."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conadv.trainer.data.augment import augment_own
from conadv.trainer.data.decoding.decode import (
    NUMBERS,
    Box,
    Interpolation,
    decode_centre,
    decode_crop,
    random_box,
)
from conadv.trainer.data.decoding.streams import fractions, global_streams, image_words

# Words of an image's stream, always all of them, so that switching one thing off leaves the
# others as they were. What comes later has to be added at the end.
_FLIP, _INTERPOLATION, _POLICY, _ERASING, _BOX = 0, 1, 2, 3, 4
_WORDS = _BOX + NUMBERS


class Preparation(Protocol):
    """Turns the bytes of an image into the pixels that the network takes."""

    @property
    def size(self) -> int:
        """Height and width of the result."""

    def __call__(self, data: bytes, seed: int, step: int, place: int, view: int = 0) -> Tensor:
        """uint8, shape (size, size, 3); raises DecodeError."""


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
        own: name of a function of one's own that comes last; see `augment.augment_own`.

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
    own: str | None = None

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
        if self.own is not None:
            pixels = augment_own(self.own, pixels, seed, step, place, view)
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


TORCHVISION = ("randaugment", "autoaugment", "trivialaugment", "augmix")
_TIMM = re.compile(r"(v0r?|originalr?|3a)(-mstd[\d.]+)?|(rand|augmix)(-[a-z]+[\d.]*)+")
# The colour that timm fills with where an operation moves the image: ImageNet's mean.
_MEAN = (124, 116, 104)


def check_policy(policy: str | None, magnitude: int | None, layers: int | None) -> None:
    """Raise ValueError unless there is such a policy, and it takes these options."""
    if policy not in ("randaugment", "augmix") and (magnitude is not None or layers is not None):
        raise ValueError(
            f"magnitude={magnitude}, layers={layers} with policy={policy!r}: only randaugment and "
            "augmix take them; a policy of timm has them in its name, as in rand-m9-n2."
        )
    if policy is None or policy in TORCHVISION:
        _check_range("magnitude", magnitude, *((0, 30) if policy == "randaugment" else (1, 10)))
        _check_range("layers", layers, 1, 16)
        return
    try:
        if not _TIMM.fullmatch(policy):
            raise ValueError("no such name")
        build_policy(policy, None, None, 224, "bilinear")
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(
            f"policy={policy!r} ({error}): allowed are {', '.join(TORCHVISION)}, and timm's v0, "
            "v0r, original, originalr, 3a, rand-m9-n2-mstd0.5 and the like, augmix-m5-w4-d2."
        ) from error


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name}={value}: give {low} to {high}.")


@lru_cache(maxsize=8)
def build_policy(
    policy: str, magnitude: int | None, layers: int | None, size: int, interpolation: str
) -> Callable[[Any], Any]:
    """A policy as a function of a Pillow image; it draws from the global generators."""
    if policy in TORCHVISION:
        return _torchvision(policy, magnitude, layers)
    from PIL import Image
    from timm.data import auto_augment as timm

    # What timm's own training transform sets.
    options: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": _MEAN}
    if interpolation != "random":
        options["interpolation"] = Image.Resampling[interpolation.upper()]
    operations: Callable[[Any], Any]
    if policy.startswith("rand"):
        operations = timm.rand_augment_transform(policy, options)
    elif policy.startswith("augmix"):
        options["translate_pct"] = 0.3
        operations = timm.augment_and_mix_transform(policy, options)
    else:
        operations = timm.auto_augment_transform(policy, options)
    _keep_black(operations, timm.posterize)
    return operations


def _keep_black(operations: Any, posterize: Callable[..., Any]) -> None:
    """Let timm's posterize keep 0 bits of each colour, as its policies do at low levels.

    That is a black image; Pillow made one until release 12, and refuses since.
    """
    groups = getattr(operations, "policy", None) or [getattr(operations, "ops", [])]
    for operation in (operation for group in groups for operation in group):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    from PIL import Image, ImageOps

    if bits <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits) if bits < 8 else image


def _torchvision(policy: str, magnitude: int | None, layers: int | None) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    # torchvision's training script passes it on; by themselves the operations take the nearest.
    bilinear = v2.InterpolationMode.BILINEAR
    build: Callable[..., Callable[[Any], Any]]
    if policy == "randaugment":
        options = {"magnitude": magnitude, "num_ops": layers}
        build = v2.RandAugment
    elif policy == "augmix":
        options = {"severity": magnitude, "mixture_width": layers}
        build = v2.AugMix
    else:
        options = {}
        build = v2.AutoAugment if policy == "autoaugment" else v2.TrivialAugmentWide
    given = {name: value for name, value in options.items() if value is not None}
    return build(interpolation=bilinear, **given)


@lru_cache(maxsize=8)
def build_erasing(probability: float, fill: tuple[int, int, int]) -> Callable[[Any], Any]:
    """Erase a rectangle of a uint8 image (3, H, W); draws from torch's global generator."""
    from torchvision.transforms import v2

    erase: Callable[[Any], Any] = v2.RandomErasing(p=probability, value=list(fill))
    return erase

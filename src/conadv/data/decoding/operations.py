"""Augmentation policies by name, from torchvision and timm."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

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

"""What each test set is, and which of the 1000 classes its folders stand for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from conadv._words import did_you_mean, nearest
from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet.classes import (
    CLASSES,
    wnids,
    wnids_of_a,
    wnids_of_r,
)
from conadv.trainer.evaluation.imagenet.corruption import CORRUPTIONS, SEVERITIES


def numbers() -> tuple[str, ...]:
    """``"0"`` to ``"999"``: ImageNetV2 calls its folders by the number of the class."""
    return tuple(str(number) for number in range(CLASSES))


@dataclass(frozen=True)
class Variant:
    """One published collection of test images."""

    name: str
    """What commands and results call it."""
    title: str
    """What tables call it."""
    images: int
    """Published number of images in each part."""
    source: str
    read_folders: Callable[[], tuple[str, ...]]
    """Gives `folders`; they come from timm, which need not be there to import this."""
    masked: bool = False
    """Whether predictions are limited to the classes of the set, as its authors' code does."""
    parts: tuple[str, ...] = ("",)
    """Sets that are scored one by one; a single empty name where there is nothing to tell apart."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Class folders in the order of their classes, which need not be alphabetical.

        Raises:
            DataError: timm is not installed.
        """
        return self.read_folders()

    @property
    def classes(self) -> tuple[int, ...]:
        """Which of the 1000 classes each of `folders` stands for, ascending.

        Raises:
            DataError: timm is not installed.
        """
        if self.read_folders is numbers:
            return tuple(range(CLASSES))
        position = {wnid: number for number, wnid in enumerate(wnids())}
        return tuple(position[folder] for folder in self.folders)


_VAL = "Russakovsky et al., 2015, arXiv 1409.0575"
_V2 = "Recht et al., 2019, arXiv 1902.10811"
_A = "Hendrycks et al., 2021, arXiv 1907.07174"
_R = "Hendrycks et al., 2021, arXiv 2006.16241"
_SKETCH = "Wang et al., 2019, arXiv 1905.13549"
_C = "Hendrycks & Dietterich, 2019, arXiv 1903.12261"
_V2_PARTS = ("matched-frequency", "threshold-0.7", "top-images")
_C_PARTS = tuple(f"{kind}/{severity}" for kind in CORRUPTIONS for severity in SEVERITIES)
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("val", "ImageNet validation", 50_000, _VAL, wnids),
        Variant("v2", "ImageNetV2", 10_000, _V2, numbers, parts=_V2_PARTS),
        Variant("a", "ImageNet-A", 7_500, _A, wnids_of_a, masked=True),
        Variant("r", "ImageNet-R", 30_000, _R, wnids_of_r, masked=True),
        Variant("sketch", "ImageNet-Sketch", 50_889, _SKETCH, wnids),
        Variant("c", "ImageNet-C", 50_000, _C, wnids, parts=_C_PARTS),
    )
}
"""Every collection by its name."""


@dataclass(frozen=True)
class ImageSet:
    """One set of images that gets a score of its own.

    Args:
        variant: The collection.
        part: One of its ``parts``.
        folder: Holds the class folders; None where images come from elsewhere, such as archives.

    Raises:
        ValueError: The collection has no such part.
    """

    variant: Variant
    part: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.part not in self.variant.parts:
            raise ValueError(
                f"{self.variant.title} has no part {self.part!r}: there are "
                f"{', '.join(map(repr, self.variant.parts))}."
            )

    @property
    def title(self) -> str:
        """Name with the variant, such as ``ImageNetV2, top-images``."""
        return f"{self.variant.title}, {self.part}" if self.part else self.variant.title

    def class_indices(self, folders: Iterable[str]) -> tuple[int, ...]:
        """Which of the 1000 classes a loader's own labels mean.

        A loader that numbers folders in alphabetical order gives ImageNetV2's folder ``"10"`` the
        label 2, and the classes of ImageNet-A the labels 0 to 199.

        Args:
            folders: The loader's classes in its own order, such as ``ImageFolder.classes``.

        Raises:
            DataError: A name is no class of this set, or timm is not installed.
        """
        known = dict(zip(self.variant.folders, self.variant.classes, strict=True))
        given = tuple(folders)
        strange = [folder for folder in given if folder not in known]
        if strange:
            raise DataError(
                f"{self.title} has no class {strange[0]!r} ({len(strange)} of {len(given)} names "
                f"are unknown): its {len(known):,} classes are called {self.variant.folders[0]} "
                f"to {self.variant.folders[-1]}."
            )
        return tuple(known[folder] for folder in given)


def named(name: str) -> tuple[Variant, str | None]:
    """The collection that a name speaks of, and the part if it names one.

    Raises:
        DataError: There is no such collection or part.
    """
    head, _, part = name.partition("/")
    variant = VARIANTS.get(head)
    if variant is None:
        hint = did_you_mean(nearest(head, VARIANTS, 1))
        raise DataError(f"No test set {name!r}: there are {', '.join(VARIANTS)}.{hint}")
    if part and part not in variant.parts:
        near = nearest(part, variant.parts, 1)
        allowed = [near[0]] if near else [variant.parts[0], variant.parts[-1]]
        examples = " or ".join(f"{head}/{one}" if one else head for one in allowed)
        raise DataError(f"{variant.title} has no part {part!r}: give a name such as {examples}.")
    return variant, part or None

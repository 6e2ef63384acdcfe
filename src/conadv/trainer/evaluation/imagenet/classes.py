"""The 1000 classes of ILSVRC2012, and the 200 of ImageNet-A and -R, from the lists in timm."""

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from conadv.errors import DataError, install_command

CLASSES = 1000
"""Outputs of a network that can be scored here."""


@cache
def wnids() -> tuple[str, ...]:
    """WordNet numbers such as ``n01440764``, sorted: output i of everybody's networks is wnid i.

    Raises:
        DataError: timm is not installed, or its list is not the expected one.
    """
    found = _lines("imagenet_synsets.txt")
    if len(found) != CLASSES or list(found) != sorted(set(found)):
        raise DataError(
            f"timm's imagenet_synsets.txt holds {len(found)} lines that should be {CLASSES} "
            "different WordNet numbers in sorted order: install timm again."
        )
    return found


def shipped(name: str) -> Path:
    """A file of timm's own data.

    The files are read in place: importing timm would bring torchvision and takes seconds.

    Raises:
        DataError: timm is not installed, or has no such file.
    """
    spec = find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "timm is not installed, and the lists of ImageNet's classes and labels come with it. "
            f"Type: {install_command('train')}"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "_info" / name
    if not path.is_file():
        raise DataError(
            f"The installed timm does not ship {name}, which is needed here. "
            'Type: pip install --upgrade "timm>=1.0.31"'
        )
    return path


def _lines(name: str) -> tuple[str, ...]:
    return tuple(shipped(name).read_text(encoding="utf-8").splitlines())


@cache
def _subset(name: str) -> tuple[str, ...]:
    found = _lines(name)
    if len(found) != 200 or list(found) != sorted(set(found) & set(wnids())):
        raise DataError(
            f"timm's {name} holds {len(found)} lines that should be 200 of the {CLASSES} classes "
            "in sorted order: install timm again."
        )
    return found


wnids_of_a = partial(_subset, "imagenet_a_synsets.txt")
"""The 200 classes of ImageNet-A, sorted (Hendrycks et al., 2021, arXiv 1907.07174)."""
wnids_of_r = partial(_subset, "imagenet_r_synsets.txt")
"""The 200 classes of ImageNet-R, sorted (Hendrycks et al., 2021, arXiv 2006.16241)."""

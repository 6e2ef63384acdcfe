"""Which networks there are, read from the libraries' sources: importing them takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from conadv.errors import ConadvError

SMALL_NAMES = ("resnet8", "resnet20", "resnet18", "resnet9", "patch-resnet9")
"""The project's own networks, ``cifar/NAME``."""
_TIMM = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_TORCHVISION = re.compile(
    r'^@register_model\((?:name="(\w+)")?\)\n(?:@.*\n)*def (\w+)\(', re.MULTILINE
)


def model_names(text: str = "") -> list[str]:
    """Names with library that contain `text`, in any case, our own networks first.

    ``torchvision/`` alone gives all of that library's, ``resnet50`` every library's.

    Raises:
        ConadvError: torchvision or timm is not installed.
    """
    names = [
        *(f"cifar/{name}" for name in SMALL_NAMES),
        *(f"torchvision/{name}" for name in sorted(_torchvision())),
        *(f"timm/{name}" for name in sorted(_timm())),
    ]
    return [name for name in names if text.lower() in name.lower()]


def _timm() -> set[str]:
    found: set[str] = set()
    for source in _sources("timm").rglob("*.py"):
        found |= set(_TIMM.findall(source.read_text(encoding="utf-8")))
    return found


def _torchvision() -> set[str]:
    """Names in the top folder: classifiers, neither detection nor segmentation nor video."""
    return set(_named(_sources("torchvision").glob("*.py")))


def _named(sources: Iterator[Path]) -> Iterator[str]:
    for source in sources:
        for given, function in _TORCHVISION.findall(source.read_text(encoding="utf-8")):
            yield given or function


def _sources(library: str) -> Path:
    """The folder ``models`` of an installed library, which is not imported."""
    spec = PathFinder.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ConadvError(
            f'{library} is not installed, and this needs it. Type: pip install "conadv[train]"'
        )
    return Path(next(iter(spec.submodule_search_locations))) / "models"

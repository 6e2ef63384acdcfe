"""Which networks there are, read from the libraries' sources: importing them takes seconds."""

import re
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from conadv._words import did_you_mean, is_path, nearest
from conadv.errors import ConadvError, RecipeError, install_command

SMALL_NAMES = ("resnet8", "resnet20", "resnet18", "resnet9", "patch-resnet9")
"""The project's own networks, ``cifar/NAME``."""
_TIMM = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_TORCHVISION = re.compile(
    r'^@register_model\((?:name="(\w+)")?\)\n(?:@.*\n)*def (\w+)\(', re.MULTILINE
)


LIBRARIES = ("cifar", "torchvision", "timm")
FORMS = f"cifar/{'|'.join(SMALL_NAMES)}, torchvision/NAME, timm/NAME or module:attribute"
"""What ``model.name`` takes."""


def check_library(name: str) -> None:
    """Raise RecipeError unless a name has a known library and, if it is ours, a known network.

    Names of torchvision and timm, and one's own, are looked up only when the network is made, for
    importing them takes seconds.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise RecipeError(f"name={name!r}: {error} Allowed: {FORMS}.") from error


def check_name(name: str) -> str:
    """The name, as a recipe's field; a ValueError says what `check_library` has against it."""
    if problem := "" if is_path(name) else _problem(name):
        raise ValueError(problem)
    return name


def _problem(name: str) -> str:
    library, slash, short = name.partition("/")
    if not slash:
        like = [f"{where}/{name}" for where in LIBRARIES if where != "cifar" or name in SMALL_NAMES]
        return f"say whose network it is.{did_you_mean(like)}"
    if library not in LIBRARIES:
        hint = did_you_mean(f"{near}/{short}" for near in nearest(library, LIBRARIES, 1, 0.5))
        return f"{library!r} has no networks.{hint}"
    return unknown(library, short, SMALL_NAMES) if library == "cifar" else ""


def unknown(library: str, short: str, known: Sequence[str]) -> str:
    """The sentence for a name that a library does not have; empty if it has it."""
    if short in known:
        return ""
    like = (f"{library}/{near}" for near in nearest(short, known, 3, 0.5))
    return f"no such network.{did_you_mean(like)}"


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
    texts = (path.read_text(encoding="utf-8") for path in _sources("torchvision").glob("*.py"))
    return {given or name for text in texts for given, name in _TORCHVISION.findall(text)}


def _sources(library: str) -> Path:
    """The folder ``models`` of an installed library, which is not imported."""
    spec = PathFinder.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ConadvError(
            f"{library} is not installed, and this needs it. Type: {install_command('train')}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "models"

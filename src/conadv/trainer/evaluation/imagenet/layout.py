"""Which test sets a folder holds, told from the names of the folders in it."""

import os
from pathlib import Path

from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet.corruption import CORRUPTIONS, SEVERITIES
from conadv.trainer.evaluation.imagenet.variants import VARIANTS, ImageSet, Variant, named

_V2_FOLDERS = {
    # As the archives unpack, and the same without their ending.
    "imagenetv2-matched-frequency": "matched-frequency",
    "imagenetv2-threshold0.7": "threshold-0.7",
    "imagenetv2-top-images": "top-images",
}
_GROUPS = ("noise", "blur", "weather", "digital")
"""The archives of ImageNet-C; some people keep them as folders around the corruptions."""
_SHOWN = 3
"""Folders that a message names; there may be a thousand."""


def find_sets(root: Path | str, name: str | None = None) -> tuple[ImageSet, ...]:
    """The test sets in a folder.

    Layouts are those in which the sets are published: class folders in ``root``; for ImageNetV2
    also subset folders such as ``imagenetv2-top-images-format-val`` with class folders in them;
    for ImageNet-C ``corruption/severity/wnid``, of which some may be missing. Folders that the
    set does not know are left alone around parts, and are an error among class folders.

    Args:
        root: The folder.
        name: Such as ``"val"``, ``"v2/top-images"``, ``"c"``; None recognises the collection. With
            a part in the name, ``root`` may also be the folder of that part alone.

    Returns:
        At least one set, in the order of the collection's parts.

    Raises:
        DataError: The folder is missing, holds nothing known or something incomplete, is not what
            ``name`` says, or timm is not installed.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} does not exist or is not a folder: give the folder of a test set.")
    variant, part = named(name) if name else (_recognise(root), None)
    if part is not None:
        inside = _parts(root, variant)
        folder = root if not inside else inside.get(part)
        if folder is None:
            raise DataError(
                f"{root} holds {', '.join(inside)}, but not {part}, which {name!r} asks for."
            )
        places = {part: folder}
    elif len(variant.parts) == 1:
        places = {variant.parts[0]: root}
    else:
        places = _parts(root, variant)
        if not places:
            raise DataError(
                f"{root} holds {_some(_folders(root))}, but no part of {variant.title}: give the "
                f"folder around its parts, or say which part this is, such as "
                f"{variant.name}/{variant.parts[0]}."
            )
    for folder in places.values():
        _check(folder, variant)
    return tuple(ImageSet(variant, p, places[p]) for p in variant.parts if p in places)


def _recognise(root: Path) -> Variant:
    """The collection, from names alone."""
    for several in ("v2", "c"):
        if _parts(root, VARIANTS[several]):
            return VARIANTS[several]
    folders = set(_folders(root))
    fitting = [v for v in VARIANTS.values() if v.name != "c" and folders == set(v.folders)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:  # validation and Sketch have the same classes
        sample = _first_file(root / min(folders))
        for start, variant in (("ILSVRC2012_val_", "val"), ("sketch_", "sketch")):
            if sample.startswith(start):
                return VARIANTS[variant]
        raise DataError(
            f"{root} has the {len(folders):,} class folders of ImageNet with images such as "
            f"{sample or 'none'}, which is neither ILSVRC2012_val_00000001.JPEG nor sketch_1.JPEG: "
            "say whether it is val or sketch."
        )
    raise DataError(
        f"{root} holds {_some(sorted(folders))}, which is no known test set. Allowed are "
        "ImageNet's 1,000 class folders (validation, Sketch), the 200 of ImageNet-A or -R, 0 to "
        "999 or subsets of them (ImageNetV2), and corruption/severity/class (ImageNet-C). If a "
        f"copy is incomplete, say which it is ({', '.join(VARIANTS)}) to hear what is missing."
    )


def _parts(root: Path, variant: Variant) -> dict[str, Path]:
    """Folders of the collection's parts inside of a folder, or the folder itself if it is one."""
    if variant.name == "v2":
        found = {_v2_part(root / name): root / name for name in _folders(root)}
        if not any(found) and set(variant.folders) & set(_folders(root)):
            found = {_v2_part(root.resolve()): root}
        return {part: folder for part, folder in found.items() if part}
    if variant.name == "c":
        places = [root, *(root / group for group in _GROUPS if (root / group).is_dir())]
        return {
            f"{corruption}/{severity}": folder
            for corruption in CORRUPTIONS
            for severity in SEVERITIES
            for place in places
            if (folder := place / corruption / str(severity)).is_dir()
        }
    return {}


def _v2_part(folder: Path) -> str:
    return _V2_FOLDERS.get(folder.name.removesuffix("-format-val"), "")


def _check(folder: Path, variant: Variant) -> None:
    """Raise DataError unless the class folders are exactly those of the collection.

    One class less would make the task easier where predictions are masked, and the average over
    other classes everywhere.
    """
    found, wanted = set(_folders(folder)), variant.folders
    missing = [name for name in wanted if name not in found]
    strange = sorted(found - set(wanted))
    if not missing and not strange:
        return
    faults = [f"{len(missing):,} are missing: {_some(missing)}"] if missing else []
    faults += [f"{len(strange):,} do not belong there: {_some(strange)}"] if strange else []
    hint = ""
    if not found and any(folder.glob("ILSVRC2012_val_*.JPEG")):
        hint = (
            " The images lie there without folders: sort them into one folder per class, or use "
            "the archive ILSVRC2012_img_val.tar with its development kit."
        )
    raise DataError(
        f"{folder} should hold the {len(wanted):,} class folders of {variant.title}, {wanted[0]} "
        f"to {wanted[-1]}, but {', and '.join(faults)}.{hint or ' Unpack it again as published.'}"
    )


def _folders(root: Path) -> list[str]:
    """Names of the visible folders, sorted."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error


def _first_file(folder: Path) -> str:
    with os.scandir(folder) as entries:
        return min((e.name for e in entries if e.is_file() and e.name[0] != "."), default="")


def _some(names: list[str]) -> str:
    if not names:
        return "no folders"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

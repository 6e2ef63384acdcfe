"""Names of shards: brace and glob patterns, and which shards of a folder belong to a split."""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from conadv.errors import DataError

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test",),
}
"""The splits, and what folders and files of each are commonly called."""


class NoSuchSplitError(DataError):
    """Images were found, but none of the split that was asked for."""


_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000


def is_pattern(where: str) -> bool:
    """Whether a path stands for several files."""
    return any(sign in where for sign in "{*?[")


def expand_braces(pattern: str) -> list[str]:
    """All names of a pattern, in order: ``{000..099}`` counts, ``{a,b}`` lists.

    As in a shell, numbers are as wide as the first of a range.

    Raises:
        DataError: a brace is not closed or empty, or there would be over a million names.
    """
    parts = _BRACES.split(pattern)
    if any("{" in text or "}" in text for text in parts[::2]):
        raise DataError(
            f"{pattern}: its braces do not match. Write shard-{{000000..000099}}.tar for a range, "
            "or {a,b} for a list."
        )
    choices = [[text] if i % 2 == 0 else _choices(pattern, text) for i, text in enumerate(parts)]
    number = 1
    for choice in choices:
        number *= len(choice)
    if number > _MOST:
        raise DataError(f"{pattern} stands for {number:,} shards: give fewer than {_MOST:,}.")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(pattern: str, inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match:
        first, last = int(match[1]), int(match[2])
        if first <= last < first + _MOST:
            return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    elif "," in inside:
        return inside.split(",")
    raise DataError(
        f"{pattern}: {{{inside}}} is no range of up to {_MOST:,} numbers such as "
        "{000000..000099}, and no list such as {a,b}."
    )


def local_shards(pattern: str) -> list[Path]:
    """The files that a local pattern stands for, sorted.

    Raises:
        DataError: there is none; or one that a range counts is missing.
    """
    found: list[Path] = []
    missing: list[str] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
        some = sorted(glob.glob(name)) if not Path(name).exists() else [name]
        found += [Path(file) for file in some]
        if not some:
            missing.append(name)
    if missing:
        total = len(found) + len(missing)
        raise DataError(
            f"{pattern}: {len(missing):,} of {total:,} shards are missing, the first is "
            f"{missing[0]}. Check the path, or give a pattern of those that are there."
        )
    return sorted(dict.fromkeys(found))


def split_of(name: str) -> str | None:
    """The split that a file name speaks of, such as imagenet1k-train-0000.tar; None if none."""
    words = re.split(r"[^a-z]+", name.lower())
    for split, called in SPLITS.items():
        if any(word in called for word in words):
            return split
    return None


def all_shards(folder: Path) -> list[Path]:
    """The archives in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def shards_of(folder: Path, split: str) -> list[Path]:
    """The shards of a split in a folder, sorted; all of them where no name speaks of a split.

    Raises:
        NoSuchSplitError: there are shards of other splits only.
    """
    shards = all_shards(folder)
    splits = [split_of(path.name) for path in shards]
    if not any(splits):
        return shards
    mine: Sequence[Path] = [p for p, s in zip(shards, splits, strict=True) if s == split]
    if not mine:
        others = ", ".join(sorted({s for s in splits if s}))
        raise NoSuchSplitError(f"{folder} holds shards of {others}, and none of {split!r}.")
    return list(mine)

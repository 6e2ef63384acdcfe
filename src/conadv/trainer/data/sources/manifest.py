"""What a folder of shards says of itself: ``manifest.json``, which `write_shards` writes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conadv.errors import DataError
from conadv.trainer.data.cache import write_whole
from conadv.trainer.data.sources.handles import unreadable

MANIFEST = "manifest.json"
FORMAT = "conadv-shards-1"


@dataclass(frozen=True)
class Manifest:
    """A set of shards.

    Args:
        source: name of the source they were made of.
        fingerprint: of that source.
        images: how many there are in all shards together.
        images_per_shard: in every shard but the last.
        seed: of the order in which images went into shards.
        classes: their names, in the order of the labels.
        class_counts: images of each class.
        complete: whether all shards have been written.
    """

    source: str
    fingerprint: str
    images: int
    images_per_shard: int
    seed: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    complete: bool = False

    def shards(self) -> list[str]:
        """File names of the shards, in order."""
        count = -(-self.images // self.images_per_shard)
        return [f"shard-{number:06d}.tar" for number in range(count)]

    def images_in(self, shard: int) -> int:
        """Number of images in a shard."""
        return min(self.images_per_shard, self.images - shard * self.images_per_shard)

    def write(self, folder: Path) -> None:
        """Write it into a folder.

        Raises:
            DataError: the folder may not be written to, or the disk is full.
        """
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"
        write_whole(folder / MANIFEST, lambda file: file.write(content.encode()))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if there is none, or it is another program's.

    Raises:
        DataError: it is damaged, or cannot be read.
    """
    path = folder / MANIFEST
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}): remove it, or make it again.") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        return None
    try:
        values["classes"] = tuple(values["classes"])
        values["class_counts"] = tuple(values["class_counts"])
        return Manifest(**values)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): make the shards again.") from error


def check_complete(manifest: Manifest, folder: Path, shards: Sequence[str], images: int) -> None:
    """See that the shards at hand are what the manifest promises.

    Shards picked by a pattern may be fewer; what is there has to hold its number of images.

    Raises:
        DataError: the conversion was interrupted, or images are missing or too many.
    """
    _check_finished(manifest, folder)
    number = {name: i for i, name in enumerate(manifest.shards())}
    expected = sum(manifest.images_in(number[name]) for name in shards if name in number)
    if images != expected:
        raise DataError(
            f"{folder}: {MANIFEST} promises {expected:,} images in these shards, there are "
            f"{images:,}. Fetch or make them again."
        )


def check_whole(folder: Path, shards: Sequence[str]) -> None:
    """See that a folder, taken as a whole, has all the shards that its manifest names.

    Raises:
        DataError: the conversion was interrupted, or a shard is missing.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    _check_finished(manifest, folder)
    missing = [name for name in manifest.shards() if name not in shards]
    if missing:
        raise DataError(
            f"{folder / missing[0]} is missing, and {len(missing) - 1} more of the shards that "
            f"{MANIFEST} names: copy or make them again, or give a pattern of those to use."
        )


def _check_finished(manifest: Manifest, folder: Path) -> None:
    if not manifest.complete:
        raise DataError(
            f"{folder} holds a conversion that is not finished: give `conadv data shard` the same "
            "source and folder again, and it goes on."
        )

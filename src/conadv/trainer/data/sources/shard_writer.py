"""Any source as shards: large files are read faster, and copied more easily, than a million small.

Images are put in as they are, never decoded. The same source, seed and size give the same bytes.
"""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, locked, say_to_stderr, write_whole
from conadv.trainer.data.sampler import order_of
from conadv.trainer.data.sources.manifest import MANIFEST, Manifest, read_manifest
from conadv.trainer.data.sources.source import ImageSource, is_image, kind_of

IMAGES_PER_SHARD = 2_000
"""About 220 MB of ImageNet, in 641 shards."""

Progress = Callable[[int, int], None]
"""A function that is told (images done, images in all)."""


def write_shards(
    source: ImageSource,
    folder: Path | str,
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    seed: int = 0,
    progress: Progress | None = None,
    say: Say = say_to_stderr,
) -> Manifest:
    """Write a source's images as WebDataset shards, with a manifest.

    Images are shuffled, so that each shard is a mixture of all classes. The key of an image is its
    index in the source. A shard has its name only once it is whole: after an interruption, the same
    call keeps the finished ones and goes on.

    Args:
        source: the images.
        folder: for the shards; is made if need be.
        images_per_shard: in every shard but the last.
        seed: of the shuffled order.
        progress: told how far it is, after every image.
        say: told when another process is working in the folder.

    Returns:
        The manifest, which also lies in the folder as ``manifest.json``.

    Raises:
        DataError: an image cannot be read or is none, the disk is full, or the folder holds shards
            of something else.
        ValueError: `images_per_shard` is not positive.
    """
    if images_per_shard < 1:
        raise ValueError(f"A shard holds at least one image, given: {images_per_shard}.")
    folder = Path(folder).expanduser()
    counts = torch.bincount(source.labels, minlength=len(source.classes))
    plan = Manifest(
        source=source.name,
        fingerprint=source.fingerprint,
        images=len(source),
        images_per_shard=images_per_shard,
        seed=seed,
        classes=source.classes,
        class_counts=tuple(counts.tolist()),
    )
    with locked(folder, say):
        before = read_manifest(folder)
        _check_folder(folder, before, plan)
        if before is None:
            plan.write(folder)
        done = 0
        for number, name in enumerate(plan.shards()):
            last = min(len(source), done + images_per_shard)
            mine = order_of(seed, 0, len(source), done, last).tolist()
            if (folder / name).exists():
                done += len(mine)
                if progress is not None:
                    progress(done, len(source))
                continue
            write_whole(folder / name, _shard(source, mine, done, progress))
            done += plan.images_in(number)
        finished = replace(plan, complete=True)
        finished.write(folder)
    return finished


def _check_folder(folder: Path, before: Manifest | None, plan: Manifest) -> None:
    if before is None:
        others = sorted(path.name for path in folder.glob("*.tar"))
        if others or (folder / MANIFEST).exists():
            what = others[0] if others else MANIFEST
            raise DataError(f"{folder} holds {what} of something else: name an empty folder.")
        return
    for part in ("fingerprint", "images_per_shard", "seed", "classes"):
        old, new = getattr(before, part), getattr(plan, part)
        if old != new:
            what = {"fingerprint": "other images", "classes": "other classes"}.get(
                part, f"{part} {old}, not {new}"
            )
            raise DataError(
                f"{folder} holds shards of {before.source!r} with {what}: name another folder, or "
                "remove this one to begin anew."
            )


def _shard(
    source: ImageSource, indices: Sequence[int], done: int, progress: Progress | None
) -> Callable[[BinaryIO], None]:
    """What writes one shard into an open file."""

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for count, index in enumerate(indices, done + 1):
                data = source.read(index)
                _add(tar, f"{index:08d}.{_extension(source, index, data)}", data)
                _add(tar, f"{index:08d}.cls", str(int(source.labels[index])).encode())
                if progress is not None:
                    progress(count, len(source))

    return write


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A TarInfo's own owner and time are zero: shards made twice are the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _extension(source: ImageSource, index: int, data: bytes) -> str:
    """What the bytes are; ImageNet has a PNG that is called JPEG. Otherwise what the name says."""
    if (kind := kind_of(data[:16])) is not None:
        return kind
    name = source.where(index).rpartition("::")[2].replace("\\", "/").rpartition("/")[2]
    if data and is_image(name):
        return name.rpartition(".")[2].lower()
    raise DataError(
        f"{source.where(index)} is no image that is known (it begins with {data[:8]!r}, of "
        f"{len(data):,} bytes): mend it, or take it out of the source."
    )

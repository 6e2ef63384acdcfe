"""Encoded images of any number, read one by one from where they lie: folders, archives, shards."""

from pathlib import Path

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, say_to_stderr
from conadv.trainer.data.sources.fetch import fetch_shards
from conadv.trainer.data.sources.folder import FolderSource, class_folders
from conadv.trainer.data.sources.huggingface import PREFIX, HuggingFaceSource, load_hub
from conadv.trainer.data.sources.imagenet import DEVKIT, TRAIN, VAL, ImageNetSource
from conadv.trainer.data.sources.manifest import Manifest, check_whole, read_manifest
from conadv.trainer.data.sources.patterns import (
    SPLITS,
    NoSuchSplitError,
    all_shards,
    expand_braces,
    is_pattern,
    local_shards,
    shards_of,
)
from conadv.trainer.data.sources.shard_writer import IMAGES_PER_SHARD, write_shards
from conadv.trainer.data.sources.shards import ShardSource
from conadv.trainer.data.sources.source import ImageSource, is_image

ALLOWED = (
    "a folder of class folders (or with train/ and val/ of such in it), a folder with "
    f"{TRAIN}, a folder of shards (*.tar) or a pattern such as shard-{{000000..000099}}.tar, an "
    "http(s) address of shards, or hf://name"
)
"""What `open_source` knows, in words."""


def open_source(
    where: Path | str,
    split: str,
    say: Say = say_to_stderr,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource:
    """Open a source of images, of whatever kind it is.

    Args:
        where: a folder of class folders, or one with a folder per split in it; a folder with
            ImageNet's published archives; a folder of shards, or a pattern for shards; an address
            of shards that begins with http:// or https://; ``hf://name[:split]``.
        split: ``"train"``, ``"val"`` or ``"test"``. Folders called validation or valid are val. A
            folder or pattern that does not speak of splits is taken as it is.
        say: told a line of text at every stage of something slow.
        image_column: with ``hf://``, the column of images; None: the only one.
        label_column: with ``hf://``, the column of labels; None: the usual one.

    Raises:
        DataError: nothing is there that can be opened; says what is allowed.
    """
    text = str(where)
    if split not in SPLITS:
        raise DataError(f"No split {split!r}: there are {', '.join(SPLITS)}.")
    if text.startswith(PREFIX):
        return load_hub(text, split, image_column, label_column)
    if text.startswith(("http://", "https://")):
        return ShardSource(fetch_shards(expand_braces(text), say), text, say)
    if "://" in text:
        raise DataError(f"{text} has an unknown beginning. Allowed are {ALLOWED}.")
    path = Path(where).expanduser()
    if path.is_dir():
        return _open_folder(path, split, say)
    if path.is_file() and path.name in (TRAIN, VAL):
        return ImageNetSource(path.parent, split, say)
    if text.endswith(".tar") and (is_pattern(text) or path.is_file()):
        shards = [path] if path.is_file() else local_shards(text)
        return ShardSource(shards, text, say)
    what = "is not there" if not path.exists() else "is nothing that holds images"
    raise DataError(f"{text} {what}. Allowed are {ALLOWED}.")


def _open_folder(folder: Path, split: str, say: Say) -> ImageSource:
    if any((folder / name).exists() for name in (TRAIN, VAL, DEVKIT)):
        if split == "test":
            raise DataError(f"{folder}: ImageNet has labels for train and val only.")
        return ImageNetSource(folder, split, say)
    if _holds_shards(folder):
        return ShardSource(shards_of(folder, split), None, say)
    folders = class_folders(folder)
    called = [f for f in folders if any(f in names for names in SPLITS.values())]
    # A class may be called train, too: then there are images in it.
    splits = [f for f in called if not any(is_image(p.name) for p in (folder / f).iterdir())]
    if not splits:
        if not folders:
            raise DataError(f"{folder} holds no images. Allowed are {ALLOWED}.")
        return FolderSource(folder, say=say)
    for name in SPLITS[split]:
        if name in splits:
            return _open_part(folder / name, f"{folder.resolve().name}-{split}", say)
        if name in called:
            raise DataError(
                f"{folder / name} holds images without class folders: move each into a folder of "
                "its class, such as val/cat/1.jpg."
            )
    raise NoSuchSplitError(
        f"{folder} holds {', '.join(splits)}, and nothing for the split {split!r}: add a folder "
        f"called {SPLITS[split][0]}, or name another split."
    )


def _open_part(folder: Path, name: str, say: Say) -> ImageSource:
    """The folder of one split: class folders or shards, whatever the shards are called."""
    if _holds_shards(folder):
        return ShardSource(all_shards(folder), name, say)
    return FolderSource(folder, name, say)


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds shards; an unfinished or incomplete set is an error."""
    shards = all_shards(folder)
    check_whole(folder, [shard.name for shard in shards])
    return bool(shards)


__all__ = [
    "ALLOWED",
    "IMAGES_PER_SHARD",
    "FolderSource",
    "HuggingFaceSource",
    "ImageNetSource",
    "ImageSource",
    "Manifest",
    "NoSuchSplitError",
    "ShardSource",
    "expand_braces",
    "open_source",
    "read_manifest",
    "write_shards",
]

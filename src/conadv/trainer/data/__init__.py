"""Where images come from, how they are augmented, in which order they arrive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conadv._words import did_you_mean, is_path, nearest
from conadv.errors import DataError

if TYPE_CHECKING:
    from conadv.trainer.data.dataset import ImageDataset

DATASETS: dict[str, str] = {
    "fashion-mnist-subset": "10,000 + 2,000 grey 28 x 28 images in the package (MIT licence)",
    "cifar10": "50,000 + 10,000 colour 32 x 32 images, fetched once (170 MB)",
    "synthetic": "made-up images of any size, for tests and dry runs",
}
"""What `load_dataset` knows, and in a few words what it is."""


def load_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> ImageDataset:
    """Load a data set by name; fetches it first if it has to.

    Args:
        name: one of `DATASETS`, or ``module:attribute``; see `load_own`.
        root: folder for fetched data; None: `cache_dir`.
        say: called with a line of text at every stage of a download; None prints to stderr.
        options: of ``"synthetic"``: size, classes, channels, train_images, test_images, seed; of
            one's own whatever it takes.

    Raises:
        DataError: no such data set, or it cannot be had.
        TypeError: options that the data set does not take.
    """
    if is_path(name):
        from conadv.trainer.data.own import load_own

        return load_own(name, root, options)
    if name not in DATASETS:
        hint = did_you_mean(nearest(name, DATASETS, 1))
        raise DataError(f"No data set {name!r}: there are {', '.join(DATASETS)}.{hint}")
    if name == "synthetic":
        from conadv.trainer.data.synthetic import make_synthetic

        return make_synthetic(**options)
    if options:
        raise TypeError(f"{name} takes no options, given: {', '.join(options)}.")
    if name == "cifar10":
        from conadv.trainer.data.cifar10 import load_cifar10

        return load_cifar10(None if root is None else Path(root).expanduser(), say)
    from conadv.trainer.data.fashion import load_fashion_subset

    return load_fashion_subset()


__all__ = ["DATASETS", "load_dataset"]

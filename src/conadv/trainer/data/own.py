"""A data set of one's own, named as ``module:attribute``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conadv._words import import_named
from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset


def load_own(name: str, root: Path | str | None, options: Mapping[str, Any]) -> ImageDataset:
    """The data set that ``module:attribute`` is or makes.

    It is an `ImageDataset`; or a pair (training, test) of sequences of (image, label), such as
    torchvision's data sets, which are read into memory. What makes one is called with the options,
    and with ``root=`` where that is given.

    Raises:
        DataError: it fails, or makes something else.
    """
    found: Any = import_named(name)
    if not isinstance(found, ImageDataset | tuple):
        given = dict(options) if root is None else {"root": root, **options}
        try:
            found = found(**given)
        except TypeError as error:
            raise DataError(
                f"data.dataset={name} failed when called with {given}: {error}. It has to take "
                "data.options, and root= where data.root is given."
            ) from error
    if isinstance(found, ImageDataset):
        return found
    if not isinstance(found, tuple) or len(found) != 2:
        raise DataError(
            f"data.dataset={name} is {type(found).__name__}: make a conadv ImageDataset, or a pair "
            "(training, test) of data sets of (image, label)."
        )
    train, test = (_gathered(name, part) for part in found)
    count = 1 + max(int(labels.max()) for _, labels in (train, test))
    classes = getattr(found[0], "classes", None) or [str(label) for label in range(count)]
    return ImageDataset(name.partition(":")[2], *train, *test, tuple(map(str, classes)))


def _gathered(name: str, part: Any) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in uint8 and labels (N,) in int64 of a sequence of pairs."""
    images: list[Tensor] = []
    labels: list[int] = []
    for place in range(len(part)):
        image, label = part[place]
        images.append(_as_bytes(name, image))
        labels.append(int(label))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"data.dataset={name}: image {place} has shape {tuple(images[-1].shape)}, the "
                f"first one {tuple(images[0].shape)}: give all the same size."
            )
    if not images:
        raise DataError(f"data.dataset={name}: a part of it has no images.")
    return torch.stack(images), torch.tensor(labels)


def _as_bytes(name: str, image: Any) -> Tensor:
    """An image as uint8 (C, H, W): of PIL or numpy with channels last, of torch with them first."""
    if isinstance(image, Tensor):
        found = image if image.ndim == 3 else image[None]
    else:
        array = np.asarray(image)
        found = torch.from_numpy(array.copy() if array.ndim == 3 else array[:, :, None].copy())
        found = found.permute(2, 0, 1)
    if found.dtype != torch.uint8 or found.ndim != 3:
        raise DataError(
            f"data.dataset={name}: an image is {found.dtype} of shape {tuple(found.shape)}: give "
            "whole numbers from 0 to 255 (a PIL image, or uint8): leave out ToTensor and Normalize."
        )
    return found.contiguous()

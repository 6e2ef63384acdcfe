"""Random numbers of one image or one micro-batch: functions of (seed, step, place, view) alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from conadv.trainer.data.augment import philox

Words = npt.NDArray[np.uint64]
"""64-bit words of a Philox stream, whose values numpy guarantees for all versions."""

# Blocks of a stream by what they are for; `augment` says which others there are.
_IMAGES = 64
_BATCHES = 192


def image_words(seed: int, step: int, place: int, view: int, count: int) -> Words:
    """The first random words of an image, uint64, shape (count,).

    Args:
        seed: of the run.
        step: from 0.
        place: of the image among those of the step, from 0.
        view: 0, or another number below `augment.VIEWS` for a further, independent view.
        count: how many; more of them begin with the same.

    Raises:
        ValueError: a negative step, place or view, or a view too many.
    """
    if place < 0:
        raise ValueError(f"place={place}: places of images in a step count from 0.")
    words: Words = philox(seed, step, view, (place + 1) << _IMAGES).random_raw(count)
    return words


def batch_words(seed: int, step: int, index: int, count: int) -> Words:
    """The first random words of micro-batch `index` of a step, uint64, shape (count,).

    Raises:
        ValueError: a negative step or index.
    """
    if index < 0:
        raise ValueError(f"index={index}: micro-batches of a step count from 0.")
    words: Words = philox(seed, step, 0, (index + 1) << _BATCHES).random_raw(count)
    return words


def fractions(words: Words) -> list[float]:
    """Words as numbers in [0, 1): their 53 upper bits, as every generator makes doubles."""
    numbers: list[float] = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    return numbers


@contextmanager
def global_streams(word: int) -> Iterator[None]:
    """Seed python's, numpy's and torch's global generators, and put them back afterwards.

    For libraries that draw from them. Of torch's generators only the one of the CPU is touched.

    Args:
        word: 64 bits that decide all three.
    """
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(word)
        np.random.seed([word & 0xFFFFFFFF, word >> 32])
        torch.default_generator.manual_seed(word)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)

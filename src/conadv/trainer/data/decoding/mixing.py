"""Mixup and cutmix of a micro-batch, with soft labels, where the images are."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from conadv.trainer.data.decoding.streams import batch_words, fractions, global_streams


@dataclass(frozen=True)
class Mixing:
    """Mix each image with the one before it, by torchvision's MixUp and CutMix.

    With lambda from Beta(alpha, alpha), mixup (Zhang et al., arXiv 1710.09412) gives
    ``lambda * image + (1 - lambda) * previous``; cutmix (Yun et al., arXiv 1905.04899) pastes a
    rectangle of the previous image, of area 1 - lambda before it is cut at the border. Labels are
    mixed by the share of each image; the first image's previous one is the last.

    Label smoothing is done to the labels first: 1 - s + s / classes for the class of the image,
    s / classes for the others.

    Args:
        classes: how many.
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of cutmix; 0: none.
        probability: of mixing a micro-batch at all.
        switch: probability of cutmix where both are on.
        label_smoothing: s, in [0, 1).

    Raises:
        ValueError: something out of range.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes={self.classes}: give 1 or more.")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give alpha, 0 or more.")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a probability, 0 to 1.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: give 0 or more, below 1.")

    @property
    def active(self) -> bool:
        """Whether anything is mixed; labels are soft in any case."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(
        self, images: Tensor, labels: Tensor, seed: int, step: int, index: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed images and soft labels, on the device of the images.

        The random numbers are a function of (seed, step, index) and the images' height and width,
        and are drawn on the CPU, so that every device mixes the same.

        Args:
            images: standardised, float, shape (N, C, H, W).
            labels: int64, shape (N,).
            seed: of the run.
            step: from 0.
            index: of the micro-batch in its step, from 0.

        Returns:
            Images of the same shape, type and memory format, and labels, float32, shape
            (N, classes), rows of sum one.

        Raises:
            ValueError: images that are not float, or labels that do not fit them.
        """
        if not images.is_floating_point() or images.ndim != 4:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: give floats of shape "
                "(N, C, H, W), standardised."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}: give int64 of shape "
                f"({len(images)},)."
            )
        soft = self.soften(labels)
        words = batch_words(seed, step, index, 3)
        mix, which, _ = fractions(words)
        if not self.active or mix >= self.probability:
            return images, soft
        cut = self.cutmix > 0 and (self.mixup == 0 or which < self.switch)
        from torchvision.transforms import v2

        kind, alpha = (v2.CutMix, self.cutmix) if cut else (v2.MixUp, self.mixup)
        with global_streams(int(words[2])):
            mixed, soft = kind(alpha=alpha, num_classes=self.classes)(images, soft)
        last = images.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        return mixed.contiguous(memory_format=form), soft

    def soften(self, labels: Tensor) -> Tensor:
        """Labels int64 (N,) as float32 (N, classes), smoothed."""
        hard = one_hot(labels, self.classes).float()
        return hard * (1 - self.label_smoothing) + self.label_smoothing / self.classes

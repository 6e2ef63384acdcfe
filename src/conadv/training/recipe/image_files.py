"""Settings of data sets that lie as encoded images in files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from conadv.training.recipe._section import Section
from conadv.training.recipe._values import Number, Text, Whole

Policy = Literal["none", "autoaugment", "autoaugment-v0", "randaugment", "trivialaugment"]
"""What is done to colours and shapes of an image, besides crop and flip."""


View = Literal["none", "plain", "autoaugment", "autoaugment-v0", "randaugment", "trivialaugment"]
"""A second view of every image: another crop and flip, or with a policy on top."""


class ImageFilesOptions(Section):
    """Images in files: how they are cropped, augmented and read."""

    test_root: Text | None = None
    """Where test images lie, in the forms of data.root; null: with the training images, as val."""
    size: Whole = Field(default=224, ge=8, le=2048)
    """Height and width of training images in pixels."""
    eval_size: Whole = Field(default=224, ge=8, le=2048)
    """Height and width of the centre crop in evaluation."""
    eval_resize: Whole = Field(default=256, ge=8, le=4096)
    """Length of the shorter side before the centre crop."""
    area: tuple[Number, Number] = Field(
        default=(0.08, 1.0),
        json_schema_extra={"allowed": "two numbers [from, to], 0 < from <= to <= 1"},
    )
    """Share of an image that a training crop covers, from and to."""
    policy: Policy = "none"
    """Augmentation of training images after the crop."""
    magnitude: Whole = Field(default=9, ge=0, le=30)
    """Strength of randaugment."""
    layers: Whole = Field(default=2, ge=1, le=16)
    """Operations per image of randaugment."""
    erasing: Number = Field(default=0.0, ge=0, le=1)
    """Probability of blanking out a random rectangle."""
    mean: tuple[Number, ...] = Field(
        default=(0.485, 0.456, 0.406), json_schema_extra={"allowed": "three numbers [r, g, b]"}
    )
    """Mean of each channel on [0, 1], which is subtracted; ImageNet's by default."""
    std: tuple[Number, ...] = Field(
        default=(0.229, 0.224, 0.225),
        json_schema_extra={"allowed": "three numbers [r, g, b], each above 0"},
    )
    """Standard deviation of each channel, which divides."""
    workers: Whole | None = Field(default=None, ge=0)
    """Processes that decode, per device; null: the cores shared out, 0: none."""
    max_corrupt: Number = Field(default=0.001, ge=0, le=1)
    """Share of unreadable images above which the run stops; fewer are replaced and named."""
    train_images: Whole = Field(default=1_281_167, ge=1)
    """Training images, for a dry run without data."""
    classes: Whole = Field(default=1000, ge=2)
    """Classes, for a dry run without data."""

    @model_validator(mode="after")
    def _check(self) -> ImageFilesOptions:
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise ValueError(f"area={list(self.area)}: give two shares, 0 < from <= to <= 1")
        if self.eval_resize < self.eval_size:
            raise ValueError(
                f"eval_resize={self.eval_resize} is less than eval_size={self.eval_size}: a crop "
                "cannot be larger than its image"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std: give three numbers each, std above 0")
        return self

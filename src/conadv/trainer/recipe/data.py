"""Which images a recipe trains on. Every field says in one sentence what it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from conadv.trainer.data import DATASETS
from conadv.trainer.recipe.values import Flag, Number, Section, Text, Whole, one_of

Policy = Literal["none", "autoaugment", "autoaugment-v0", "randaugment", "trivialaugment"]
"""What is done to colours and shapes of an image, besides crop and flip."""


View = Literal["none", "plain", "autoaugment", "autoaugment-v0", "randaugment", "trivialaugment"]
"""A second view of every image: another crop and flip, or with a policy on top."""


class ImageFilesOptions(Section):
    """Images in files: how they are cropped, augmented and read."""

    test_root: Text | None = None
    """Where test images lie, in the forms of data.root; null: with the training images, as val."""
    image_column: Text | None = None
    """Column of the images of hf:// data; null: the only one."""
    label_column: Text | None = None
    """Column of the labels of hf:// data, classes or whole numbers; null: the usual one."""
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


DATASET_NAMES = (*DATASETS, "files")


class SyntheticOptions(Section):
    """Made-up images for dry runs: blobs whose place and colour depend on the class."""

    size: Whole = Field(default=16, ge=4, le=512)
    """Height and width in pixels."""
    classes: Whole = Field(default=4, ge=2, le=1000)
    """Number of classes."""
    channels: Whole = Field(default=3, ge=1, le=16)
    """Number of channels."""
    train_images: Whole = Field(default=512, ge=2)
    """Number of training images."""
    test_images: Whole = Field(default=128, ge=1)
    """Number of test images."""
    seed: Whole = Field(default=0, ge=0)
    """Seed that the images are drawn from."""


class DataSection(Section):
    """Which images, and how they are augmented."""

    dataset: Annotated[Text, one_of("data set", DATASET_NAMES)] = Field(
        default="fashion-mnist-subset",
        json_schema_extra={"allowed": f"{', '.join(DATASET_NAMES)}, or module:attribute"},
    )
    """Data set; the first one comes with the package, files are images of your own (data.root),
    module:attribute an ImageDataset or a function that makes one, or (training, test) data sets of
    (image, label)."""
    root: Text | None = None
    """Folder of downloaded data; null uses the cache ($CONADV_DATA). With files: a folder of class
    folders, ImageNet's archives, shards, an address or hf://NAME. A function of one's own is called
    with root=, unless this is null."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of a data set of one's own."""
    train_images: Whole | None = Field(default=None, ge=2)
    """Use only so many training images, balanced by class; null: all."""
    validation: Number = Field(default=0.1, ge=0, lt=1)
    """Share of the training images held out for validation."""
    split_seed: Whole | None = Field(default=None, ge=0, lt=2**32)
    """Seed of which images are trained on and held out; null takes the run's seed. Runs of one
    split_seed share them."""
    test_unused: Flag = False
    """Test also on the training images that train_images leaves unused, besides the test images."""
    crop_padding: Whole = Field(default=0, ge=0, le=64)
    """Random crop after padding by so many pixels; 0: no crop."""
    flip: Flag = False
    """Mirror half of the training images."""
    cutout: Whole = Field(default=0, ge=0, le=256)
    """Side of the square that is blanked out, in pixels; 0: none."""
    augment: Text | None = None
    """A function of one's own, module:function, that changes each training image last: from a uint8
    tensor (H, W, C) and a numpy Generator to a uint8 tensor like it."""
    order_tail: Literal["wrap", "drop", "keep"] = "wrap"
    """The images left when an epoch ends inside a step: go on with the next epoch's, drop them, or
    make a smaller step."""
    synthetic: SyntheticOptions = SyntheticOptions()
    """Only for data.dataset=synthetic."""
    files: ImageFilesOptions = ImageFilesOptions()
    """Only for data.dataset=files."""

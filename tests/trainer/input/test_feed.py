"""The images of a step do not depend on how it is cut or on where reading began."""

from typing import Any

import pytest
import torch

from conadv.trainer.input.feed import ResidentFeed
from conadv.trainer.input.load import load_splits
from support.runs import tiny

CPU = torch.device("cpu")


def feed(*overrides: str) -> ResidentFeed:
    recipe = tiny("data.cutout=2", *overrides)
    splits = load_splits(recipe, CPU)
    return ResidentFeed(recipe, splits.dataset, splits.train_indices, CPU)


def step_images(source: ResidentFeed, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [source.micro_batch(step, i) for i in range(len(source.sizes(step)))]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize("step", [0, 2, 3])  # 48 images: step 3 begins the second epoch
def test_micro_batches_never_change_an_image(step: int) -> None:
    whole = step_images(feed("batch.micro_batch=16"), step)
    cut = step_images(feed("batch.micro_batch=4"), step)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])


def test_any_micro_batch_can_be_read_at_any_time() -> None:
    """A resumed run, lookahead and another rank read the same images."""
    source = feed()
    in_order = {(s, i): source.micro_batch(s, i) for s in range(6) for i in range(2)}
    other = feed()
    for step, index in [(4, 1), (0, 0), (5, 0), (4, 0), (1, 1), (0, 1), (5, 1)]:
        images, labels = other.micro_batch(step, index)
        assert torch.equal(images, in_order[step, index][0])
        assert torch.equal(labels, in_order[step, index][1])


def test_sample_ids_are_positions_in_the_data_set() -> None:
    source = feed("data.crop_padding=0", "data.flip=false", "data.cutout=0")
    splits = load_splits(tiny(), CPU)
    ids = source.sample_ids(1)
    assert len(set(ids)) == 16 and not set(ids) & set(splits.val_indices.tolist())
    _, labels = step_images(source, 1)
    assert labels.tolist() == splits.dataset.train_labels[ids].tolist()


@pytest.mark.parametrize(
    ("tail", "sizes"),
    [
        ("wrap", [[8, 8], [8, 8], [8, 8], [8, 8]]),
        ("drop", [[8, 8], [8, 8], [8, 8], [8, 8]]),
        ("keep", [[8, 8], [8, 8], [8, 2], [8, 8]]),
    ],
)
def test_the_tail_of_an_epoch(tail: str, sizes: Any) -> None:
    source = feed("data.train_images=42", "data.validation=0", f"data.order_tail={tail}")
    assert [source.sizes(step) for step in range(4)] == sizes
    assert source.epoch(3) == {"wrap": 48 / 42, "drop": 1.5, "keep": 1.0}[tail]
    images, _ = step_images(source, 2)
    assert len(images) == sum(sizes[2])
    seen = [sum(sum(source.sizes(before)) for before in range(step)) for step in range(8)]
    assert [source.images(step) for step in range(8)] == seen


def test_fixed_budget_reads_fewer_images() -> None:
    source = feed("method.budget=fixed", "method.share=0.25")
    assert source.sizes(0) == [6, 6]


def test_channels_last() -> None:
    images, _ = feed("hardware.channels_last=true").micro_batch(0, 0)
    assert images.is_contiguous(memory_format=torch.channels_last)

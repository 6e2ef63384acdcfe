"""Mixup and cutmix against their formulas."""

import random

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from conadv.trainer.data.decoding import Mixing

CLASSES = 7


def batch(count=6, side=16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, side, side, generator=generator)
    return images, torch.arange(count) % CLASSES


def shares(soft: torch.Tensor, labels: torch.Tensor) -> float:
    """Lambda, read off the labels of images whose neighbours have other classes."""
    return float(soft[torch.arange(len(labels)), labels][0])


def test_mixup_is_its_formula() -> None:
    images, labels = batch()
    found = []
    for step in range(60):
        mixed, soft = Mixing(CLASSES, mixup=0.4)(images, labels, seed=0, step=step, index=0)
        part = shares(soft, labels)
        found.append(part)
        assert torch.allclose(mixed, part * images + (1 - part) * images.roll(1, 0), atol=1e-6)
        hard = one_hot(labels, CLASSES).float()
        assert torch.allclose(soft, part * hard + (1 - part) * hard.roll(1, 0), atol=1e-6)
    # Beta(0.4, 0.4) has mean 1/2 and variance 1 / (4 (2 * 0.4 + 1)).
    assert abs(np.mean(found) - 0.5) < 5 * np.sqrt(1 / (4 * 1.8) / 60)
    assert abs(np.var(found) - 1 / (4 * 1.8)) < 0.06


def test_cutmix_is_its_formula() -> None:
    images, labels = batch()
    for step in range(40):
        mixed, soft = Mixing(CLASSES, cutmix=1.0)(images, labels, seed=0, step=step, index=0)
        pasted = (mixed != images).any(1)
        assert mixed.equal(torch.where(pasted[:, None], images.roll(1, 0), images))
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert pasted.equal((rows[:, None] & columns).expand_as(pasted))  # one rectangle for all
        for line in (rows, columns):
            places = line.nonzero().flatten()
            assert len(places) == 0 or int(places[-1] - places[0]) + 1 == len(places)
        part = 1 - float(pasted[0].float().mean())
        hard = one_hot(labels, CLASSES).float()
        assert torch.allclose(soft, part * hard + (1 - part) * hard.roll(1, 0), atol=1e-6)


def test_label_smoothing_is_its_formula() -> None:
    images, labels = batch()
    same, soft = Mixing(CLASSES, label_smoothing=0.1)(images, labels, seed=0, step=0, index=0)
    assert same is images
    hard = one_hot(labels, CLASSES).float()
    assert torch.allclose(soft, 0.9 * hard + 0.1 / CLASSES)
    # The loss is that of torch's own smoothing.
    logits = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(2))
    loss = torch.nn.functional.cross_entropy
    assert torch.allclose(loss(logits, soft), loss(logits, labels, label_smoothing=0.1))
    mixed = Mixing(CLASSES, mixup=1.0, label_smoothing=0.1)(images, labels, 0, 0, 0)[1]
    plain = Mixing(CLASSES, mixup=1.0)(images, labels, 0, 0, 0)[1]
    assert torch.allclose(mixed, 0.9 * plain + 0.1 / CLASSES)
    assert torch.allclose(mixed.sum(1), torch.ones(6))


def test_numbers_follow_from_seed_step_and_index_alone() -> None:
    images, labels = batch()
    mixing = Mixing(CLASSES, mixup=0.2, cutmix=1.0)
    first = mixing(images, labels, 3, 5, 2)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    state = torch.get_rng_state()
    again = mixing(images, labels, 3, 5, 2)
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    assert torch.get_rng_state().equal(state)
    others = [mixing(images, labels, *key)[1] for key in ((4, 5, 2), (3, 6, 2), (3, 5, 3))]
    assert not any(first[1].equal(other) for other in others)


def kinds(mixing: Mixing, count=400) -> dict[str, float]:
    images, labels = batch(count=4, side=8)
    found = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(count):
        mixed, _ = mixing(images, labels, 0, step, 0)
        if mixed is images:
            found["none"] += 1
        else:
            kept = ((mixed == images) | (mixed == images.roll(1, 0))).all()
            found["cutmix" if kept else "mixup"] += 1
    return {name: number / count for name, number in found.items()}


def test_switch_and_probability() -> None:
    both = kinds(Mixing(CLASSES, mixup=1.0, cutmix=1.0, probability=0.8, switch=0.25))
    assert abs(both["none"] - 0.2) < 0.08
    assert abs(both["cutmix"] - 0.2) < 0.08
    assert kinds(Mixing(CLASSES, mixup=1.0, switch=1.0), 50)["mixup"] == 1
    assert kinds(Mixing(CLASSES, cutmix=1.0, switch=0.0), 50)["cutmix"] == 1
    assert kinds(Mixing(CLASSES, mixup=1.0, probability=0.0), 50)["none"] == 1


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_memory_format_and_type_stay(kind) -> None:
    images, labels = batch()
    mixing = Mixing(CLASSES, **{kind: 1.0})
    last = images.to(torch.bfloat16, memory_format=torch.channels_last)
    mixed, soft = mixing(last, labels, 0, 0, 0)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert (mixed.dtype, soft.dtype) == (torch.bfloat16, torch.float32)
    assert mixing(images, labels, 0, 0, 0)[0].is_contiguous()
    assert mixing(images[:1], labels[:1], 0, 0, 0)[0].shape == (1, 3, 16, 16)
    before = images.clone()
    mixing(images, labels, 0, 0, 0)
    assert images.equal(before)


def test_active() -> None:
    assert not Mixing(2, label_smoothing=0.1).active
    assert not Mixing(2, mixup=0.2, probability=0).active
    assert Mixing(2, mixup=0.2).active


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 0},
        {"classes": 2, "mixup": -1},
        {"classes": 2, "cutmix": -0.1},
        {"classes": 2, "probability": 1.5},
        {"classes": 2, "switch": -1},
        {"classes": 2, "label_smoothing": 1.0},
    ],
)
def test_what_is_out_of_range(options) -> None:
    with pytest.raises(ValueError, match=f"{[*options][-1]}="):
        Mixing(**options)


def test_wrong_inputs() -> None:
    images, labels = batch()
    mixing = Mixing(CLASSES, mixup=1.0)
    with pytest.raises(ValueError, match=r"uint8 .* give floats"):
        mixing((images * 50).byte(), labels, 0, 0, 0)
    with pytest.raises(ValueError, match=r"give int64 of shape \(6,\)"):
        mixing(images, labels[:5], 0, 0, 0)

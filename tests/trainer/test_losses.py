"""The losses of training against torch's own and against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conadv.errors import RecipeError
from conadv.trainer.build import build
from conadv.trainer.losses import (
    LOSSES,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    class_weights,
)
from support.runs import tiny

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 0, 0, 1, 1, 2, 0, 0, 0])
WEIGHT = torch.tensor([0.5, 1.0, 3.0])


def test_cross_entropy_is_torchs_but_for_the_divisor() -> None:
    expected = F.cross_entropy(LOGITS, LABELS, WEIGHT, reduction="sum") / 12
    torch.testing.assert_close(CrossEntropy(WEIGHT)(LOGITS, LABELS), expected)
    smooth = CrossEntropy(label_smoothing=0.2)(LOGITS, LABELS)
    torch.testing.assert_close(smooth, F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2))


def test_bce_is_the_mean_over_images_and_classes() -> None:
    targets = F.one_hot(LABELS, 3).float()
    expected = F.binary_cross_entropy_with_logits(LOGITS, targets)
    torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, LABELS), expected)
    smooth = F.binary_cross_entropy_with_logits(LOGITS, 0.9 * targets + 0.1 / 3)
    torch.testing.assert_close(BinaryCrossEntropy(label_smoothing=0.1)(LOGITS, LABELS), smooth)


def test_focal_in_closed_form() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])  # p = 3/4, 1/4
    loss = Focal(gamma=2.0)(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(0.25**2 * math.log(4 / 3)))
    plain = Focal(gamma=0.0, label_smoothing=0.1)(LOGITS, LABELS)
    torch.testing.assert_close(plain, F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    Focal(gamma=0.5)(sure, torch.tensor([0])).backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_how_a_batch_is_cut(name: str) -> None:
    loss = LOSSES[name](WEIGHT, 0.1)
    parts = torch.stack([loss(LOGITS[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)])
    torch.testing.assert_close(loss(LOGITS, LABELS), parts.mean())


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_probabilities(name: str) -> None:
    loss = LOSSES[name](WEIGHT, 0.1)
    soft = F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(loss(LOGITS, soft), loss(LOGITS, LABELS))


def test_balanced_weights_make_classes_count_alike() -> None:
    found = class_weights("balanced", 4, lambda: LABELS)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([12 / 21, 12 / 9, 12 / 6, 1.0]))
    torch.testing.assert_close(found[LABELS].mean(), torch.tensor(1.0))


def test_a_recipe_chooses_its_loss() -> None:
    assert type(build(tiny()).trainer.criterion) is nn.CrossEntropyLoss
    built = build(tiny("train.loss=focal", "train.loss_options.gamma=1", "train.mixup=0.2"))
    criterion = built.trainer.criterion
    assert isinstance(criterion, Focal) and criterion.gamma == 1
    built.trainer.train_step()
    weighted = build(tiny("train.loss=bce", "train.class_weights=[1, 4]")).trainer
    assert isinstance(weighted.criterion, BinaryCrossEntropy)
    weighted.train_step()
    balanced = build(tiny("train.class_weights=balanced")).trainer.criterion
    assert isinstance(balanced, CrossEntropy) and balanced.weight is not None
    with pytest.raises(RecipeError, match="has 3 numbers, and there are 2 classes"):
        build(tiny("train.class_weights=[1, 2, 3]"))
    with pytest.raises(RecipeError, match="gamma=-1"):
        build(tiny("train.loss=focal", "train.loss_options.gamma=-1"))
    for wrong in ("[1]", "[1, 0]", "even"):
        with pytest.raises(RecipeError, match="train.class_weights"):
            tiny(f"train.class_weights={wrong}")

"""Counts by hand, on logits that are made up so that the answers are known."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from conadv.errors import DataError, NonFiniteError
from conadv.trainer.evaluation.imagenet import (
    VARIANTS,
    Counts,
    ImageSet,
    RealLabels,
    SetScore,
    load_real_labels,
    score_set,
    summary,
)
from conadv.trainer.evaluation.imagenet.score import Batch

VAL, A, R = (ImageSet(VARIANTS[name]) for name in ("val", "a", "r"))


def logits(*answers: list[int]) -> Tensor:
    """One row per answer, whose classes come first in the order given; the rest as they are."""
    scores = torch.zeros(len(answers), 1000)
    for row, classes in enumerate(answers):
        for place, number in enumerate(classes):
            scores[row, number] = 10.0 - place
    return scores


def batch(scores: Tensor, labels: list[int], start: int = 1) -> Batch:
    names = [f"ILSVRC2012_val_{start + i:08d}.JPEG" for i in range(len(labels))]
    return scores, torch.tensor(labels), names


def test_top1_and_top5() -> None:
    scores = logits([7], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [3])
    found = score_set(lambda: [batch(scores, [7, 5, 4, 999])], VAL)
    # Right; fifth; sixth; nowhere (equal zeros come after, the lowest numbers first).
    assert found == SetScore("val", "", Counts(4, 1, 2))
    assert (found.counts.top1_accuracy, found.counts.top5_accuracy) == (0.25, 0.5)
    assert found.counts.top1_standard_error == math.sqrt(0.25 * 0.75 / 4)
    assert found.counts.top5_standard_error == 0.25
    assert (scores.softmax(dim=1).argsort(dim=1, descending=True, stable=True)[1, 4]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_equal_scores_the_lowest_class_wins(dtype: torch.dtype) -> None:
    scores = torch.zeros(6, 1000, dtype=dtype)
    found = score_set(lambda: [batch(scores, [0, 1, 2, 3, 4, 5])], VAL)
    assert found.counts == Counts(6, 1, 5)


def test_predictions_are_masked_to_the_classes_of_a_and_r() -> None:
    # ImageNet-A has the classes 6, 11, 13, 15 and not 0 to 5; ImageNet-R has 1, 2, 4, 6.
    scores = logits([0, 6], [6, 11], [0, 1, 2, 3, 4, 5, 6, 11, 13])
    labels = [6, 11, 13]
    assert score_set(lambda: [batch(scores, labels)], VAL).counts == Counts(3, 0, 2)
    assert score_set(lambda: [batch(scores, labels)], A).counts == Counts(3, 1, 3)
    # In ImageNet-R 6 is beaten by 1, 2 and 4, and 11 and 13 are among its classes too.
    in_r = R.variant.classes
    assert in_r[:4] == (1, 2, 4, 6) and {11, 13} <= set(in_r)
    assert score_set(lambda: [batch(scores, labels)], R).counts == Counts(3, 1, 2)


def test_masking_is_the_published_code() -> None:
    """Against argmax over the columns of the set with labels 0 to 199, as the authors do."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 1000, generator=generator)
    for name in ("a", "r"):
        columns = torch.tensor(ImageSet(VARIANTS[name]).variant.classes)
        own = torch.randint(0, 200, (500,), generator=generator)
        scores[torch.arange(500), columns[own]] += 2
        right = int((scores[:, columns].argmax(dim=1) == own).sum())
        labels = columns[own].tolist()
        batches = [batch(scores, labels)]
        found = score_set(lambda given=batches: given, ImageSet(VARIANTS[name]))
        assert found.counts.top1 == right
        assert 0 < right < 500


def test_real_labels() -> None:
    real = RealLabels(((970, 795), (), (30,), (5, 6), (10,)))
    scores = logits([795], [1], [4], [9, 8, 7, 6], [10])
    found = score_set(lambda: [batch(scores, [970, 1, 4, 5, 10])], VAL, real=real)
    # Own labels: wrong, right, right, wrong, right. ReaL: the second label counts, the image
    # without labels is left out, 4 is no label of the third, 6 is fourth, right.
    assert found.counts == Counts(5, 3, 3)
    assert found.real == Counts(4, 2, 3)
    with pytest.raises(ValueError, match="not to ImageNet-A"):
        score_set(lambda: [], A, real=real)
    with pytest.raises(DataError, match="give names from"):
        score_set(lambda: [batch(scores[:1], [970], start=6)], VAL, real=real)


def test_real_labels_as_timm_counts_them() -> None:
    data = pytest.importorskip("timm.data")
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(400, 1000, generator=generator)
    real = load_real_labels()
    for row, classes in enumerate(real.labels[:400]):
        if classes and row % 2:
            scores[row, classes[-1]] += 3
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    theirs = data.RealLabelsImagenet(names)
    theirs.add_result(scores)
    found = score_set(lambda: [batch(scores, [0] * 400)], VAL, real=real).real
    assert found is not None and found.images == len(theirs.is_correct[1]) < 400
    assert (found.top1, found.top5) == (sum(theirs.is_correct[1]), sum(theirs.is_correct[5]))
    assert 0 < found.top1 < found.top5 < found.images


def test_no_images() -> None:
    empty = score_set(lambda: [], VAL)
    assert empty == SetScore("val", "", Counts(0, 0, 0))
    with pytest.raises(ValueError, match="no images"):
        empty.counts.top1_accuracy.hex()


def test_gradients_are_off() -> None:
    layer = torch.nn.Linear(2, 1000)

    def batches() -> Iterator[Batch]:
        scores = layer(torch.ones(1, 2))
        assert not scores.requires_grad
        yield batch(scores, [0])

    assert score_set(batches, VAL).counts.images == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (batch(torch.zeros(2, 999), [0, 1]), r"shape \(2, 999\): give floats \(N, 1000\)"),
        (batch(torch.zeros(2, 1000, dtype=torch.int64), [0, 1]), "torch.int64"),
        (batch(torch.zeros(2, 1000), [0]), "2 rows of scores"),
        ((torch.zeros(1, 1000), torch.tensor([0]), []), "0 names"),
        ((torch.zeros(1, 1000), torch.tensor([0.0]), ["x"]), "labels torch.float32"),
        (batch(torch.zeros(2, 1000), [0, 1000]), "among the 1000 classes"),
        (batch(torch.zeros(2, 1000), [0, -1]), "among the 1000 classes"),
    ],
)
def test_batches_that_do_not_fit(given: Batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_set(lambda: [given], VAL)


def test_labels_of_the_loader_are_noticed() -> None:
    with pytest.raises(ValueError, match=r"200 classes of ImageNet-A.*class_indices"):
        score_set(lambda: [batch(torch.zeros(2, 1000), [0, 199])], A)


def test_nan_is_an_error_and_no_answer() -> None:
    scores = torch.zeros(2, 1000)
    scores[1, 5] = math.nan
    with pytest.raises(NonFiniteError, match="answers NaN on ImageNet validation"):
        score_set(lambda: [batch(scores, [0, 5])], VAL)


def test_summary() -> None:
    scores = [
        SetScore("c", "fog/3", Counts(50_000, 20_000, 30_000)),
        SetScore("a", "", Counts(7_500, 750, 1_500)),
        SetScore("val", "", Counts(50_000, 38_000, 46_500), Counts(46_837, 39_000, 45_000)),
    ]
    found = json.loads(json.dumps(summary(scores, "resnet50")))
    assert [entry["set"] for entry in found["sets"]] == ["val", "a", "c"]
    val, a, _ = found["sets"]
    assert (val["top1"], val["top5"], val["classes"]) == (0.76, 0.93, 1000)
    assert val["top1_standard_error"] == pytest.approx(0.00191, abs=1e-6)
    assert val["real"]["published_images"] == val["real"]["images"] == 46_837
    assert (a["classes"], a["published_images"], a["real"]) == (200, 7_500, None)
    assert found["corruption"]["errors"] == {"fog": {"3": 0.6}}
    assert found["corruption"]["mce"] is None
    assert summary(scores[1:])["corruption"] is None
    assert json.loads(json.dumps(asdict(scores[0])))["counts"]["top1"] == 20_000
    with pytest.raises(ValueError, match=r"several scores of c/fog/3: join"):
        summary([*scores, scores[0]])
    with pytest.raises(ValueError, match="no images"):
        summary([SetScore("a", "", Counts(0, 0, 0))])

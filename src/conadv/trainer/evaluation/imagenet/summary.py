"""All scores of one network as JSON: what a report reads."""

from collections.abc import Iterable
from typing import Any

from conadv.trainer.evaluation.imagenet.corruption import corruption_errors
from conadv.trainer.evaluation.imagenet.score import Counts, SetScore
from conadv.trainer.evaluation.imagenet.variants import VARIANTS, ImageSet

KIND = "imagenet"
"""Value of ``kind``, by which a reader knows the file."""
REAL_IMAGES = 46_837
"""Validation images that have a ReaL label."""


def summary(scores: Iterable[SetScore], model: str = "") -> dict[str, Any]:
    """Scores with everything that a table needs.

    Args:
        scores: At most one of each set, over all its images.
        model: What tables call the network.

    Returns:
        ``kind, model, sets, corruption``. ``sets`` holds one entry per score: ``set, part,
        title, classes, images, published_images, top1, top1_standard_error, top5,
        top5_standard_error, real``; accuracies are fractions, ``real`` is None or has the same
        figures against ReaL labels. ``corruption`` is None without ImageNet-C, else
        `CorruptionErrors.to_json`.

    Raises:
        ValueError: A set is there twice, or has no images.
        DataError: timm is not installed.
    """
    scores = list(scores)
    places = [(score.variant, score.part) for score in scores]
    twice = sorted({"/".join(place).rstrip("/") for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(
            f"There are several scores of {', '.join(twice)}: join the parts of each set first."
        )
    order = [(variant.name, part) for variant in VARIANTS.values() for part in variant.parts]
    scores.sort(key=lambda score: order.index((score.variant, score.part)))
    cells = {
        (corruption, int(severity)): (score.counts.images - score.counts.top1, score.counts.images)
        for score in scores
        if score.variant == "c"
        for corruption, _, severity in [score.part.partition("/")]
    }
    return {
        "kind": KIND,
        "model": model,
        "sets": [_entry(score) for score in scores],
        "corruption": corruption_errors(cells).to_json() if cells else None,
    }


def _entry(score: SetScore) -> dict[str, Any]:
    images = ImageSet(VARIANTS[score.variant], score.part)
    return {
        "set": score.variant,
        "part": score.part,
        "title": images.title,
        "classes": len(images.variant.folders) if images.variant.masked else 1000,
        **_figures(score.counts, images.variant.images),
        "real": None if score.real is None else _figures(score.real, REAL_IMAGES),
    }


def _figures(counts: Counts, published: int) -> dict[str, Any]:
    return {
        "images": counts.images,
        "published_images": published,
        "top1": counts.top1_accuracy,
        "top1_standard_error": counts.top1_standard_error,
        "top5": counts.top5_accuracy,
        "top5_standard_error": counts.top5_standard_error,
    }

"""Scores on ImageNet's test sets: validation, ReaL, V2, A, R, Sketch and C.

Which images a set holds, which classes a prediction may name, and how the published figure is
made of the answers. How images are decoded, and what network answers, is the caller's business.
Reading the classes needs timm (extra ``train``), which ships the lists.
"""

from conadv.trainer.evaluation.imagenet.classes import wnids
from conadv.trainer.evaluation.imagenet.corruption import (
    ALEXNET_ERRORS,
    CorruptionErrors,
    corruption_errors,
)
from conadv.trainer.evaluation.imagenet.layout import find_sets
from conadv.trainer.evaluation.imagenet.real import RealLabels, load_real_labels
from conadv.trainer.evaluation.imagenet.score import Counts, SetScore, score_set
from conadv.trainer.evaluation.imagenet.summary import summary
from conadv.trainer.evaluation.imagenet.variants import VARIANTS, ImageSet, Variant

__all__ = [
    "ALEXNET_ERRORS",
    "VARIANTS",
    "CorruptionErrors",
    "Counts",
    "ImageSet",
    "RealLabels",
    "SetScore",
    "Variant",
    "corruption_errors",
    "find_sets",
    "load_real_labels",
    "score_set",
    "summary",
    "wnids",
]

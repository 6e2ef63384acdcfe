"""Measurements on trained models. Nothing here knows the trainer."""

from conadv.lab.analysis.corruptions import CorruptionAccuracy, corrupt, corruption_accuracy
from conadv.lab.analysis.gap import GeneralisationGap, generalisation_gap
from conadv.lab.analysis.landscape import (
    LandscapeLine,
    LandscapePlane,
    filter_normalised_direction,
    landscape_line,
    landscape_plane,
)
from conadv.lab.analysis.old_gradients import GradientAgreement, gradient_agreement
from conadv.lab.analysis.passes import Batches, Progress, Score
from conadv.lab.analysis.robustness_curve import RobustnessCurve, robustness_curve
from conadv.lab.analysis.sam_sharpness import SamCurve, sam_sharpness
from conadv.lab.analysis.sharpness import HessianSummary, hessian_summary
from conadv.lab.analysis.staleness import (
    Agreement,
    AgreementSummary,
    LoggedAgreement,
    agreement_over_training,
    perturbation_agreement,
)
from conadv.trainer.evaluation.robustness import Robustness, robust_accuracy

__all__ = [
    "Agreement",
    "AgreementSummary",
    "Batches",
    "CorruptionAccuracy",
    "GeneralisationGap",
    "GradientAgreement",
    "HessianSummary",
    "LandscapeLine",
    "LandscapePlane",
    "LoggedAgreement",
    "Progress",
    "Robustness",
    "RobustnessCurve",
    "SamCurve",
    "Score",
    "agreement_over_training",
    "corrupt",
    "corruption_accuracy",
    "filter_normalised_direction",
    "generalisation_gap",
    "gradient_agreement",
    "hessian_summary",
    "landscape_line",
    "landscape_plane",
    "perturbation_agreement",
    "robust_accuracy",
    "robustness_curve",
    "sam_sharpness",
]

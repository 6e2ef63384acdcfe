"""Measurements on trained models. Nothing here knows the trainer."""

from conadv.analysis.robustness import Robustness, robust_accuracy

__all__ = ["Robustness", "robust_accuracy"]

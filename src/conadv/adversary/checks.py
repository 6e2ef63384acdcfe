"""What the adversary checks before anything is computed: the model, labels, rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv.attack import Criterion
from conadv.branches.routing import Router

IGNORE_INDEX = -100
"""The label that torch's cross entropy leaves out unless it is told of another one."""


def check_model(model: nn.Module) -> None:
    """Raise ValueError for a model that has no parameters, or not yet."""
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameters: there is nothing to train. Give the "
            "network itself, not a loss or a container of functions."
        )
    if any(nn.parameter.is_lazy(p) for p in parameters):
        raise ValueError(
            f"{type(model).__name__} has lazy modules that have not seen data yet: run one batch "
            "through it (model(images)) before split_norms and Adversary."
        )


def warn_unsplit(model: nn.Module) -> None:
    """Warn where clean and adversarial images would share batch norm without being asked to."""
    count = sum(isinstance(module, _BatchNorm) for module in model.modules())
    if count:
        warnings.warn(
            f"The model has {count} batch-norm layers that clean and adversarial images share: "
            "accuracy suffers. Call conadv.split_norms(model) first, or say that it is meant with "
            "split_norms(model, statistics='shared').",
            UserWarning,
            stacklevel=3,
        )


def check_branch(routers: Sequence[Router], name: str | None, argument: str) -> None:
    """Raise ValueError where a part of the model has no branch of that name."""
    for router in routers:
        if name not in router.branches:
            raise ValueError(
                f"{argument}: the model has no branch {name!r}, it was split into "
                f"{', '.join(router.branches)}."
            )


def check_labels(labels: Any, outputs: Any) -> None:
    """Raise ValueError for integer labels outside the outputs' classes.

    On a GPU such a label is a device-side assert that kills the process; one look at the first
    batch is cheap. Other labels than one integer per row are the criterion's affair.
    """
    if not isinstance(labels, Tensor) or not isinstance(outputs, Tensor):
        return
    if labels.is_floating_point() or labels.ndim != 1 or outputs.ndim != 2:
        return
    classes = outputs.shape[1]
    outside = (labels >= classes) | ((labels < 0) & (labels != IGNORE_INDEX))
    if outside.any():
        raise ValueError(
            f"A label is {int(labels[outside][0])}, but the model has {classes} outputs: labels "
            f"run from 0 to {classes - 1}. Check the labels' offset, or the model's number of "
            "classes."
        )


def checking(criterion: Criterion) -> Criterion:
    """`criterion`, which looks at the labels first: for the attack it may be the first to see."""

    def checked(outputs: Any, labels: Any) -> Tensor:
        check_labels(labels, outputs)
        return criterion(outputs, labels)

    return checked


def no_criterion(outputs: Any, labels: Any) -> Tensor:
    """The criterion of a `mix` that was given none."""
    raise ValueError(
        "mix() was given no criterion, and this schedule attacks with one: call "
        "mix(images, labels, criterion) with criterion(outputs, labels) -> mean loss."
    )


def warn_of_zeros(share: float) -> None:
    """Warn where most of the input gradient is zero: such an attack must not stay unseen."""
    if share > 0.5:
        warnings.warn(
            f"{share:.0%} of the input gradient is exactly zero, and sign(0) = 0 leaves those "
            "pixels as they are. With fp16 the loss scale is too small for the gradient of "
            "single images: scale the loss as a mean over the micro-batch and divide the "
            "accumulated gradients once, or use bf16.",
            RuntimeWarning,
            stacklevel=4,
        )

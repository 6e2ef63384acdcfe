"""What updates weights: every optimizer, and what a step does beside it, each told of once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from conadv._words import is_path
from conadv.trainer.recipe.values import Section


@dataclass(frozen=True)
class Refusal:
    """A value of another field with which something cannot be used."""

    field: str
    """Dotted."""
    when: Callable[[Any], bool]
    """Condition on the field's value."""
    why: str
    instead: str
    """What to set it to."""


SHARDED = "hardware.parallel", lambda value: value == "fsdp"
_WHOLE_GRADIENT = (
    Refusal(*SHARDED, "it needs the whole gradient on each process", "hardware.parallel=ddp"),
    Refusal(
        "hardware.precision",
        lambda value: value == "fp16",
        "it reads gradients before the loss scale is taken out of them",
        "hardware.precision=bf16 or fp32",
    ),
)


@dataclass(frozen=True)
class Optimizer:
    """How an optimizer is made from a recipe, and what it costs."""

    make: str
    """``module:attribute``, called with parameter groups and options."""
    takes: tuple[str, ...] = ()
    """Fields of the section beside lr, betas and eps that are its options."""
    label: str | None = None
    """What a table calls a method for it; None: it is not mentioned."""
    states: int = 2
    """Buffers as large as the weights, with momentum."""
    norms: int = 0
    """Times that tensors as large as the weights are read once more, for norms."""
    classifier_apart: bool = False
    """Whether the last linear layer is a group that it does not adapt."""
    variance_reduced: bool = False
    """Whether there is a form of it with variance reduction."""
    refuses: tuple[Refusal, ...] = ()

    def buffers(self, settings: Any) -> int:
        """Buffers as large as the weights, with a recipe's settings."""
        unused = "momentum" in self.takes and settings.momentum == 0
        return 0 if unused else self.states

    def passes(self, buffers: int | None = None) -> int:
        """Fewest times that an update reads or writes as many values as there are weights.

        Weights and each buffer are read and written, the gradient is read, and what norms need
        once more; with nothing left in a cache.

        Args:
            buffers: As `buffers` gives them; None: with momentum.
        """
        return 3 + 2 * (self.states if buffers is None else buffers) + self.norms


_MOMENTUM = ("momentum", "nesterov")
OPTIMIZERS: Mapping[str, Optimizer] = {
    # Its norms read w and g before the update does.
    "lars": Optimizer(
        "conadv.optim:LARS",
        (*_MOMENTUM, "trust_coefficient", "lr_in_momentum"),
        states=1,
        norms=2,
        variance_reduced=True,
    ),
    # Moments first, with |w| on the way; then w, m and v are read once more for the update.
    "lamb": Optimizer("conadv.optim:LAMB", label="LAMB", norms=3),
    "sgd": Optimizer("torch.optim:SGD", _MOMENTUM, states=1, variance_reduced=True),
    "adamw": Optimizer("torch.optim:AdamW"),
    "muon": Optimizer(
        "conadv.optim:Muon",
        label="Muon",
        classifier_apart=True,
        refuses=(
            Refusal(
                *SHARDED,
                "Muon needs whole matrices, and each process has a part of them",
                "hardware.parallel=ddp",
            ),
        ),
    ),
}
"""Those of which more is known than their class in torch.optim, by ``optimizer.name``."""
_NOT_HERE = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""Classes of torch.optim that cannot train a network in this loop. torch's Muon takes matrices
only; ours is called muon."""
_IMPORTED = re.compile(r"^from torch\.optim\.\w+ import (\w+) as [A-Z]\w+$", re.MULTILINE)


def optimizer_names() -> list[str]:
    """Every name that ``optimizer.name`` takes, besides ``module:attribute``."""
    spec = PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        return list(OPTIMIZERS)
    source = Path(spec.origin).with_name("optim") / "__init__.py"  # importing it takes seconds
    classes = _IMPORTED.findall(source.read_text(encoding="utf-8"))
    return [*OPTIMIZERS, *sorted(set(classes).difference(_NOT_HERE))]


def optimizer_of(recipe: Section) -> Optimizer:
    """The recipe's optimizer: a known one, a class of torch.optim, or one of one's own."""
    name = value(recipe, "optimizer.name")
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if is_path(name):
        return Optimizer(name, label=name.partition(":")[2])
    return Optimizer(f"torch.optim:{name}")


@dataclass(frozen=True)
class Beside:
    """What a step does beside the optimizer."""

    switch: str
    """Dotted field that turns it on."""
    on: Any
    """Value with which it is on."""
    off: str
    """How a recipe turns it off."""
    make: str
    """``module:attribute``, called with the parameters and the values of `takes`."""
    takes: tuple[str, ...]
    """Dotted fields of its settings."""
    without: str
    """Why these are without effect where it is off."""
    label: str
    """What a table calls it; ``{optimizer}`` is the optimizer's name."""
    gradients: int = 1
    """Gradients of a step, each of a forward and backward pass over the whole batch."""
    refuses: tuple[Refusal, ...] = ()


_SAM_REFUSES = (
    Refusal(
        "method.kind",
        lambda kind: bool(kind.makes_copies),
        "the pass that finds the perturbation of the weights would use up the adversarial copies "
        "of the one that trains",
        "method.schedule=vanilla",
    ),
    Refusal(
        "optimizer.variance_reduction",
        bool,
        "the noise of a gradient at perturbed weights is not what its paper measures",
        "optimizer.variance_reduction=false",
    ),
    *_WHOLE_GRADIENT,
)
_RHO = ("method.rho",), "no weight is perturbed"
BESIDE: tuple[Beside, ...] = (
    Beside(
        "optimizer.variance_reduction",
        True,
        "optimizer.variance_reduction=false",
        "conadv.optim:VarianceReduction",
        ("optimizer.gsnr_gamma", "optimizer.gsnr_momentum"),
        "no gradient is scaled",
        "VR-{optimizer}",
        refuses=(
            Refusal(
                "data.order_tail",
                lambda value: value == "keep",
                "a short step may have one micro-batch, whose gradient has nothing to be compared "
                "with",
                "data.order_tail=wrap or drop",
            ),
            *_WHOLE_GRADIENT,
        ),
    ),
    Beside(
        "method.sam",
        "sam",
        "method.sam=none",
        "conadv.optim:SAM",
        *_RHO,
        "SAM",
        gradients=2,
        refuses=_SAM_REFUSES,
    ),
    Beside(
        "method.sam",
        "async",
        "method.sam=none",
        "conadv.optim:AsyncSAM",
        *_RHO,
        "async SAM",
        gradients=2,
        refuses=_SAM_REFUSES,
    ),
)


def choices(switch: str) -> list[Beside]:
    """All that a field can turn on."""
    return [b for b in BESIDE if b.switch == switch]


def beside(recipe: Section, switch: str) -> Beside | None:
    """What a field turns on, or None."""
    return next((b for b in in_use(recipe) if b.switch == switch), None)


def in_use(recipe: Section) -> list[Beside]:
    """What steps do beside the optimizer."""
    return [b for b in BESIDE if value(recipe, b.switch) == b.on]


def gradients(recipe: Section) -> int:
    """Gradients of a step, each of a forward and backward pass over the whole batch."""
    return max((b.gradients for b in in_use(recipe)), default=1)


def update_labels(recipe: Section) -> list[str]:
    """What a table calls the way in which weights are updated: nothing, for the usual ways."""
    own = optimizer_of(recipe)
    name = value(recipe, "optimizer.name").upper()
    names = [b.label.format(optimizer=name) for b in in_use(recipe)]
    return names if own.label is None else [own.label, *names]


def value(recipe: Section, dotted: str) -> Any:
    """What a recipe's field holds."""
    section, _, key = dotted.partition(".")
    return getattr(getattr(recipe, section), key)

"""Copies of weights in a plan: passes at moved weights, and gradients that wait."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

from conadv.lab.planning.job import Dealt, Extra, Method
from conadv.lab.planning.network import Network
from conadv.schedules import Work
from conadv.weights import WeightSchedule


@dataclass(frozen=True)
class WeightMethod(Method):
    """A schedule of copies of weights, alone or beside copies of images.

    A schedule that follows training counts with its largest share, one of every so many steps
    with their mean. `schedule` is the name in tables.
    """

    weights: WeightSchedule = field(default_factory=WeightSchedule)
    beside: Method | None = None
    """Copies of images; None: there are none."""
    parameters: Literal["matrices", "norm", "all"] = "matrices"
    """Which weights move."""

    def __post_init__(self) -> None:
        """Check nothing: the schedules have checked themselves."""

    @property
    def work(self) -> Work:
        """What a step goes over, per image of the micro-batch."""
        at = max((n / 100 for n in range(101)), key=self.weights.share_at)
        work = self.weights.work(at, None if self.beside is None else self.beside.work)
        return replace(work, views=self.views)

    @property
    def ahead(self) -> bool:
        """Whether it takes gradients of later batches, beside the training pass."""
        return self._ascends_ahead or (self.beside is not None and self.beside.ahead)

    @property
    def _ascends_ahead(self) -> bool:
        return self.weights.reads_ahead(1) > 0

    def extras(self, network: Network) -> list[Extra]:
        """The attack's passes, and ascents: each of an ascent is one of training."""
        part, work = self.weights.fresh_share(), self.work
        found = [] if self.beside is None else self.beside.extras(network)
        found = [
            replace(extra, operations=part * extra.operations, saved=part * extra.saved)
            for extra in found
        ]
        if not work.ascents:
            return found
        saved = work.ascents * network.saved
        ascents = Extra(
            work.ascents * network.train, network.train, saved, ahead=self._ascends_ahead
        )
        return [*found, ascents]

    def pending(self, network: Network, dealt: Dealt) -> float:
        """Bytes that wait for later steps: gradients, images beside them, copies of images."""
        images = 4.0 * network.values * self.fresh * dealt.micro_batch
        kept = self.weights.kept_bytes(self._moved(network), dealt.rounds, images=images)
        if self.beside is None:
            return kept
        return kept + self.weights.fresh_share() * self.beside.pending(network, dealt)

    def beside_weights(self, network: Network) -> float:
        """Bytes of the moved weights: in single precision until the backward pass is over."""
        return 4.0 * self._moved(network)

    def _moved(self, network: Network) -> int:
        """Numbers that a perturbation has; biases count as those of normalisation."""
        others = network.parameters - network.matrices
        return {"matrices": network.matrices, "norm": others, "all": network.parameters}[
            self.parameters
        ]

    @property
    def passes(self) -> float:
        """Images at moved weights and others go through the network one after the other."""
        alone = 0.0 if self.beside is None else self.weights.fresh_share() * self.beside.copies
        return 1 + 1 / self.weights.every if self.copies > alone else 1

    @property
    def heaviest(self) -> WeightMethod:
        """One with passes at moved weights."""
        weights = copy(self.weights)
        weights.every = 1
        return replace(self, weights=weights)

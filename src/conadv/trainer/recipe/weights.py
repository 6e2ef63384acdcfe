"""The section ``weights`` of a recipe: copies of the weights, beside those of images or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from conadv.trainer.recipe.values import Flag, Scheduled, Section, Whole, piecewise

if TYPE_CHECKING:
    from conadv.weights import WeightAttack, WeightSchedule


class WeightsSection(Section):
    """Passes at weights that are moved uphill, per micro-batch (docs/weights.md)."""

    schedule: Literal["none", "sequential", "recycled", "lookahead", "slot", "noise"] = "none"
    """Whose gradient moves the weights: of the same images right before, of last step's images
    that are trained on again, of the same images tau steps ago, of other images, nobody's."""
    rho: Scheduled = 0.01
    """Radius, relative to each layer's norm, or points [[progress, value], ...]."""
    radius: Literal["layer", "global"] = "layer"
    """Whether the radius is of each layer, relative to its norm, or of all weights together."""
    centred: Flag | None = None
    """Whether the mean over the step's micro-batches is taken out of a gradient; null: out of
    old ones."""
    weight: Scheduled | None = None
    """Weight of the passes at moved weights, or points [[progress, value], ...]; null: all of it
    where they are of the same images (a half beside copies of images), by number for recycled."""
    share: Scheduled = 1.0
    """Share of the micro-batches that get such a pass, or points [[progress, value], ...]."""
    every: Whole = Field(default=1, ge=1)
    """Such passes in every so-manieth step alone: 2 for every second one."""
    budget: Literal["extra", "fixed"] = "extra"
    """Copies beside the batch, or in place of a part of it (recycled only)."""
    tau: Whole = Field(default=1, ge=1)
    """Age of the gradient in steps (lookahead only)."""
    parameters: Literal["matrices", "norm", "all"] = "matrices"
    """Which weights move."""

    @property
    def on(self) -> bool:
        """Whether anything moves."""
        return self.schedule != "none"

    def make(self) -> WeightSchedule:
        """The schedule.

        Raises:
            ValueError: Settings that do not go together.
        """
        from conadv.weights.schedules import SCHEDULES  # and torch: reading a recipe goes without

        own: dict[str, dict[str, Any]] = {
            "recycled": {"budget": self.budget},
            "lookahead": {"tau": self.tau},
        }
        weight = None if self.weight is None else piecewise(self.weight)
        kind = SCHEDULES[self.schedule]
        share, every = piecewise(self.share), self.every
        return kind(share=share, weight=weight, every=every, **own.get(self.schedule, {}))

    @property
    def label(self) -> str:
        """What a table calls it."""
        seldom = f", every {self.every} steps" if self.every > 1 else ""
        return f"{self.schedule} weights{seldom}"

    def attack(self) -> WeightAttack:
        """What one perturbation is; a micro-batch is the recipe's."""
        from conadv.weights import WeightAttack

        return WeightAttack(
            rho=piecewise(self.rho),
            radius=self.radius,
            centred=self.centred,
            parameters=self.parameters,
        )

    @property
    def centres(self) -> bool:
        """`centred`, its default filled in."""
        return self.make().centred if self.centred is None else self.centred

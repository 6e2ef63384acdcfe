"""What a study may set out to decide."""

from typing import Literal, Self

from pydantic import Field, model_validator

from conadv.trainer.recipe.values import Number, Section, Text, Whole

PRIMARY = "primary"
Claim = Literal["better", "won_back", "interaction", "not_worse", "equivalent"]


class Hypothesis(Section):
    """What a study is to decide about one method, stated before its final runs.

    Every claim is about a sum of accuracies of the same seed: see `contrast`.
    """

    claim: Claim = "better"
    """better: more accurate than another. won_back: by at least a share of what the other loses
    from the small batch to this one. interaction: it gains more at this batch than at the small
    one. not_worse, equivalent: by less than the margin."""
    method: Text
    """Method that it is about."""
    batch: Whole
    """The batch at which it is tested."""
    than: Text = "vanilla"
    """Method that it is compared with."""
    than_batch: Whole | None = None
    """The other's batch; null: the same."""
    small_batch: Whole | None = None
    """The small batch (won_back, interaction)."""
    share: Number = Field(default=0.5, gt=0, le=1)
    """Share of the loss (won_back)."""
    margin: Number | None = Field(default=None, gt=0, lt=1)
    """Accuracy that does not matter, as a fraction (not_worse, equivalent)."""
    measure: Literal["test_accuracy", "robust_accuracy", "val_accuracy"] = "test_accuracy"
    """What is compared, of result.json."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        small = self.claim in ("won_back", "interaction")
        if small != (self.small_batch is not None):
            raise ValueError(
                f"claim={self.claim} with small_batch={self.small_batch}: give the small batch for "
                "won_back and interaction, and for these alone"
            )
        if (self.claim in ("not_worse", "equivalent")) != (self.margin is not None):
            raise ValueError(
                f"claim={self.claim} with margin={self.margin}: give a margin for not_worse and "
                "equivalent, and for these alone"
            )
        if small and self.than_batch is not None:
            raise ValueError(f"claim={self.claim}: both are compared at each batch, no than_batch")
        return self

    def contrast(self) -> dict[tuple[str, int], float]:
        """Factors on the accuracies of (method, batch) whose sum is above 0 if the claim holds.

        For not_worse it is above minus the margin, for equivalent within the margin.
        """
        found = {(self.method, self.batch): 1.0}
        if self.small_batch is None:
            return {**found, (self.than, self.than_batch or self.batch): -1.0}
        if self.claim == "won_back":
            small = (self.than, self.small_batch)
            return {**found, (self.than, self.batch): self.share - 1, small: -self.share}
        small_gain = {(self.method, self.small_batch): -1.0, (self.than, self.small_batch): 1.0}
        return {**found, (self.than, self.batch): -1.0, **small_gain}


class Hypotheses(Section):
    """What a study decides: one question, and a family of further ones."""

    primary: Hypothesis
    """The one question."""
    secondary: dict[Text, Hypothesis] = Field(default={})
    """A family of further ones by name, corrected for their number (Holm)."""
    spread: Number | None = Field(default=None, gt=0)
    """Standard deviation over seeds of a difference of two accuracies, from a pilot: what a dry
    run works the smallest visible effect out from."""

    @property
    def named(self) -> dict[str, Hypothesis]:
        """All of them by name, the primary one first."""
        return {PRIMARY: self.primary, **self.secondary}

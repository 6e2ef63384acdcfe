"""The recipe as a whole, and what follows from its numbers."""

from typing import Any

from pydantic import Field

from conadv._numbers import largest_divisor
from conadv.errors import RecipeError
from conadv.trainer.recipe.data import DataSection
from conadv.trainer.recipe.method import MethodSection
from conadv.trainer.recipe.sections import (
    BRANCHES,
    VIEW_BRANCH,
    AttackSection,
    BatchSection,
    CheckpointSection,
    EvaluationSection,
    HardwareSection,
    LoggingSection,
    LrScheduleSection,
    ModelSection,
    NormSection,
    OptimizerSection,
    TrainSection,
)
from conadv.trainer.recipe.updates import update_labels
from conadv.trainer.recipe.values import Flag, Number, Section, Text, Whole
from conadv.trainer.recipe.weights import WeightsSection
from conadv.trainer.recipe.yaml12 import one_line

LARGEST_DEFAULT_MICRO_BATCH = 128


class Recipe(Section):
    """Everything that decides what a run computes. Make one with `load_recipe`."""

    name: Text = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe."""
    description: Text = ""
    """What it is for, in one sentence."""
    source: Text = ""
    """Where its numbers come from."""
    published: Number | None = Field(default=None, ge=0, le=1)
    """Test accuracy that its source reports, as a fraction."""
    verified: Flag = False
    """Whether this project has run it to its end."""
    seed: Whole = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    data: DataSection = DataSection()
    """Images and augmentation."""
    model: ModelSection = ModelSection()
    """Network."""
    batch: BatchSection = BatchSection()
    """Batch sizes."""
    norm: NormSection = NormSection()
    """Branch normalisation."""
    method: MethodSection = MethodSection()
    """Adversarial copies."""
    attack: AttackSection = AttackSection()
    """The adversarial step."""
    weights: WeightsSection = WeightsSection()
    """Copies of the weights."""
    optimizer: OptimizerSection = OptimizerSection()
    """Weight update."""
    lr_schedule: LrScheduleSection = LrScheduleSection()
    """Learning rate."""
    train: TrainSection = TrainSection()
    """Length and loss."""
    evaluation: EvaluationSection = EvaluationSection()
    """What is measured."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Saving."""
    logging: LoggingSection = LoggingSection()
    """Loggers."""
    hardware: HardwareSection = HardwareSection()
    """Device and precision."""

    # -- derived -------------------------------------------------------------------------------

    @property
    def micro_batch(self) -> int:
        """Images per forward pass, the default filled in."""
        return self.batch.micro_batch or largest_divisor(
            self.batch.global_batch, LARGEST_DEFAULT_MICRO_BATCH
        )

    @property
    def micro_steps(self) -> int:
        """Forward passes per weight update."""
        return self.batch.global_batch // self.micro_batch

    @property
    def norm_group(self) -> int:
        """Images per normalisation group, the default filled in."""
        return self.batch.norm_group or self.micro_batch

    @property
    def branches(self) -> tuple[str, ...]:
        """Normalisation branches of the model: an adversarial one where there are copies."""
        branches = BRANCHES if self.method.kind.makes_copies else BRANCHES[:1]
        return branches if self.method.view == "none" else (*branches, VIEW_BRANCH)

    @property
    def fresh_per_micro_batch(self) -> int:
        """Fresh images per forward pass: with a fixed budget, what the copies leave."""
        trained = self.weights.make().fresh_images(self.micro_batch) if self.weights.on else None
        return self.method.make().fresh_images(trained or self.micro_batch)

    @property
    def reads_ahead(self) -> int:
        """Steps that the schedules read ahead."""
        return self.weights.make().reads_ahead(1) or self.method.make().reads_ahead

    @property
    def fresh_per_step(self) -> int:
        """Fresh images per weight update: what the loader hands over."""
        return self.fresh_per_micro_batch * self.micro_steps

    @property
    def peak_lr(self) -> float:
        """Peak learning rate, the scaling rule applied."""
        from conadv.optim.learning_rate import scaled_lr  # and torch: reading a recipe goes without

        given = self.optimizer
        return scaled_lr(given.lr, given.lr_rule, given.lr_base_batch, self.batch.global_batch)

    @property
    def method_label(self) -> str:
        """What a table calls the method."""
        return method_label(self)

    @property
    def split_seed(self) -> int:
        """Seed of which images are trained on, held out and left, the default filled in."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def robust_epsilon(self) -> float:
        """Radius of the test attack in pixel units, the default filled in."""
        given = self.evaluation.robust_epsilon
        return self.attack.epsilon if given is None else given

    def division(self, processes: int) -> str:
        """How the global batch is cut, in words."""
        passes = self.micro_steps // processes
        return (
            f"global batch {self.batch.global_batch:,}: "
            + (f"{processes} processes with " if processes > 1 else "")
            + f"{passes:,} forward pass{'es' if passes > 1 else ''} of {self.micro_batch:,} "
            f"images each, normalised in groups of {self.norm_group:,}"
        )

    def steps_per_epoch(self, train_images: int) -> float:
        """Weight updates per pass over the fresh images; whole unless an epoch's tail wraps.

        Args:
            train_images: training images, those held out for validation not counted.

        Raises:
            RecipeError: one step would need more fresh images than there are.
        """
        if self.fresh_per_step > train_images:
            raise RecipeError(
                f"batch.global_batch={self.batch.global_batch} takes {self.fresh_per_step} fresh "
                f"images per step, but only {train_images} images of {self.data.dataset} are "
                "there to train on. Lower batch.global_batch, or data.validation."
            )
        from conadv.trainer.data.sampler import steps_per_epoch

        return steps_per_epoch(self.fresh_per_step, train_images, self.data.order_tail)

    def total_steps(self, train_images: int) -> int:
        """Weight updates of the whole run, at least one; see `steps_per_epoch`."""
        per_epoch = self.steps_per_epoch(train_images)
        factor = self.train.steps_factor
        if self.train.steps is not None:
            return max(1, round(factor * self.train.steps))
        assert self.train.epochs is not None
        return max(1, round(factor * self.train.epochs * per_epoch))

    def warmup_steps(self, train_images: int) -> int:
        """Weight updates of the warm-up; see `steps_per_epoch`."""
        epochs = self.train.steps_factor * self.lr_schedule.warmup_epochs
        return round(epochs * self.steps_per_epoch(train_images))


def method_label(recipe: Recipe) -> str:
    """``method.label``, or what the schedule, the update and the length of training come to.

    ``SAM``, ``Muon + recycled``, ``vanilla, 2x steps``. LARS, SGD and AdamW have no name of their
    own here: which of them a table compares with is in its settings.
    """
    method = recipe.method
    if method.label is not None:
        return method.label
    own = update_labels(recipe)
    if method.view != "none":
        own.append("extra view")
    if recipe.weights.on:
        own.append(recipe.weights.label)
    schedule = method.make()
    names = own if own and not schedule.makes_copies else [*own, schedule.label]
    longer = recipe.train.steps_factor
    return " + ".join(names) + (f", {longer:.3g}x steps" if longer != 1 else "")


WITHOUT_EFFECT = (
    "description",
    "source",
    "published",
    "verified",
    "data.root",
    "data.files.test_root",
    "data.files.workers",
    "hardware.parallel",
    "hardware.timeout",
    "checkpoint",
    "logging",
)
"""Fields and sections that do not change what a run computes, but for rounding."""


def differing_fields(before: Recipe, now: Recipe, *, everything: bool = False) -> list[str]:
    """Fields with different values, each as ``optimizer.lr (was 1.0, now 10.0)``.

    Args:
        before: the one recipe.
        now: the other one.
        everything: also fields without effect on what a run computes, such as the description or
            how often a checkpoint is written.
    """
    old, new = flat(before), flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not everything:
        names = [n for n in names if not n.startswith(tuple(f"{w}." for w in WITHOUT_EFFECT))]
        names = [n for n in names if n not in WITHOUT_EFFECT]
    return [
        f"{name} (was {one_line(old.get(name))}, now {one_line(new.get(name))})" for name in names
    ]


def flat(recipe: Recipe) -> dict[str, Any]:
    """All values by dotted name, in plain types."""
    found: dict[str, Any] = {}

    def walk(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                found[prefix + key] = value

    walk("", recipe.model_dump(mode="json"))
    return found

"""From a recipe to a trainer that is ready for its first step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from conadv.analysis import Robustness, robust_accuracy
from conadv.distributed import World
from conadv.distributed.world import local_device
from conadv.precision import autocast_dtype, resolve_device
from conadv.training.feed import Feed, MixedFeed
from conadv.training.fully_sharded import FullySharded
from conadv.training.measure import EvalImages, Score, score
from conadv.training.method import make_adversary, make_model, make_test_attack
from conadv.training.parallel import Alone, DataParallel, Exchange
from conadv.training.recipe import Recipe
from conadv.training.splits import Facts, Splits, load_splits
from conadv.training.step import Numerics
from conadv.training.trainer import Trainer
from conadv.training.updates import (
    learning_rate_factor,
    make_optimizer,
    make_sam,
    make_variance_reduction,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """A recipe made real."""

    recipe: Recipe
    world: World
    device: torch.device
    splits: Splits
    validation: EvalImages | None
    trainer: Trainer
    evaluate_every: int
    """Steps between looks at the validation split."""

    def score(self, images: EvalImages) -> Score:
        """Loss and accuracy of the model as it is now (its average, with EMA).

        Each rank takes a part of the images.
        """
        model, numerics = self.trainer.evaluated_model, self.trainer.numerics
        layout, branch = self.recipe.hardware.channels_last, self.recipe.evaluation.branch

        def measure(part: EvalImages, batch: int) -> Score:
            batches = part.batches(batch, self.device, channels_last=layout)
            return score(model, batches, numerics.autocast(), branch)

        return Score.joined(self._on_parts(images, measure))

    def robust_accuracy(self) -> float:
        """Accuracy of the model as it is now under the recipe's test attack."""
        settings = self.recipe.evaluation

        def measure(part: EvalImages, batch: int) -> Robustness:
            with self.trainer.numerics.autocast():
                return robust_accuracy(
                    self.trainer.evaluated_model,
                    part.batches(batch, self.device),
                    make_test_attack(self.recipe, self.splits.facts),
                    branch=settings.branch,
                    seed=self.recipe.seed + self.world.rank,
                )

        images = self.splits.test().first(settings.robust_images)
        return Robustness.joined(self._on_parts(images, measure)).robust_accuracy

    def _on_parts(self, images: EvalImages, measure: Callable[[EvalImages, int], T]) -> list[T]:
        """Measure this rank's part, in batches of so many images; what all ranks found."""
        world, batch = self.world, self.recipe.evaluation.batch
        part = images.part(world.rank, world.size)
        own = measure(part, batch) if len(part) or world.size == 1 else None
        if self.trainer.exchange.lockstep:
            # The others' passes need this rank too; what it makes of these images is dropped.
            most = -(-len(images.part(0, world.size)) // batch)
            if missing := most - -(-len(part) // batch):
                measure(images.repeated(missing), 1)
        return [found for found in world.gather(own) if found is not None]


def build(recipe: Recipe, world: World | None = None, splits: Splits | None = None) -> Built:
    """Load the data and make model, optimizer, adversary and trainer.

    Reseeds torch's global random stream: the initial weights are a function of the recipe.

    Args:
        recipe: What to train and how.
        world: This process among those of the run; None is a process on its own.
        splits: The images; None loads the recipe's.

    Raises:
        RecipeError: The recipe does not fit its data or this machine.
        DataError: The data cannot be had.
        DistributedError: The recipe cannot be carried by so many processes.
    """
    world = world or World()
    slots = world.slots(recipe.micro_steps)  # before anything that takes time
    device = resolve_device(local_device(recipe.hardware.device, world))
    splits = splits or load_splits(recipe, device, world)
    count = splits.train_count
    feed = _mixed(recipe, splits.feed(recipe, slots), splits.facts)
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, splits.facts).to(device)
    sharded = world.size > 1 and recipe.hardware.parallel == "fsdp"
    if recipe.hardware.channels_last and not sharded:  # fully_shard takes contiguous weights only
        model = model.to(memory_format=torch.channels_last)
    exchange = _exchange(recipe, model, world)
    trainer = Trainer(
        model=model,
        adversary=make_adversary(recipe, exchange.wrapped, splits.facts, len(slots)),
        optimizer=make_optimizer(recipe, model),
        criterion=nn.CrossEntropyLoss(label_smoothing=recipe.train.label_smoothing),
        feed=feed,
        factor=learning_rate_factor(recipe, count),
        numerics=Numerics(
            device=device,
            autocast_dtype=autocast_dtype(recipe.hardware.precision, device),
            clip_grad_norm=recipe.train.clip_grad_norm,
            nonfinite=recipe.train.nonfinite,
            ema_decay=recipe.train.ema_decay,
        ),
        exchange=exchange,
        micro_steps=recipe.micro_steps,
        tau=recipe.method.tau if recipe.method.schedule == "lookahead" else 0,
        sam=make_sam(recipe, model.parameters()),
        variance_reduction=make_variance_reduction(recipe, model.parameters(), world.size),
    )
    if world.size > 1 and not sharded:
        trainer.settle()
    every = round(recipe.evaluation.every_epochs * recipe.steps_per_epoch(count))
    return Built(recipe, world, device, splits, splits.validation(), trainer, max(1, every))


def _mixed(recipe: Recipe, feed: Feed, facts: Facts) -> Feed:
    mixup, cutmix = recipe.train.mixup, recipe.train.cutmix
    if not (mixup or cutmix):
        return feed
    from conadv.data.decoding import Mixing

    classes = recipe.model.num_classes or len(facts.classes)
    mixing = Mixing(classes, mixup, cutmix)  # the criterion smooths the labels
    mixed: Any = MixedFeed(feed, mixing, recipe.seed)
    return mixed  # type: ignore[no-any-return]


def _exchange(recipe: Recipe, model: nn.Module, world: World) -> Exchange:
    called: Any = torch.compile(model) if recipe.hardware.compile else model
    if world.size == 1:
        return Alone(called)
    if recipe.hardware.parallel == "fsdp":
        return FullySharded(model, world)
    return DataParallel(model, called, world)

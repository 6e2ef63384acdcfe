"""Make a trainer that is ready for its first step from a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import conadv
from conadv.errors import RecipeError, doing
from conadv.trainer.distributed import World
from conadv.trainer.distributed.data_parallel import DataParallel, Exchange, FullySharded
from conadv.trainer.distributed.world import local_device
from conadv.trainer.evaluation.robustness import Robustness, robust_accuracy
from conadv.trainer.input.feed import Feed, MixedFeed
from conadv.trainer.input.images import EvalImages, Score, score
from conadv.trainer.input.load import load_splits
from conadv.trainer.input.splits import Facts, Splits
from conadv.trainer.losses import make_criterion
from conadv.trainer.models.first_pass import try_model
from conadv.trainer.models.warm_start import start_from
from conadv.trainer.models.zoo import build_model
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.sections import BRANCHES
from conadv.trainer.run.device import autocast_dtype, resolve_device
from conadv.trainer.step import Precision, StepAdversary
from conadv.trainer.trainer import Trainer
from conadv.trainer.update import make_update

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """A recipe made real."""

    recipe: Recipe
    world: World
    device: torch.device
    splits: Splits
    validation: EvalImages | None
    adversary: StepAdversary
    trainer: Trainer
    evaluate_every: int
    """Steps between looks at the validation split."""

    @property
    def of_images(self) -> conadv.Adversary:
        """What makes copies of images, if anything does; its attack is the recipe's."""
        return _of_images(self.adversary)

    def score(self, images: EvalImages) -> Score:
        """Loss and accuracy of the model as it is now (its average, with EMA).

        Each rank takes a part of the images.
        """
        model, precision = self.trainer.update.evaluated_model, self.trainer.precision
        layout, branch = self.recipe.hardware.channels_last, self.recipe.evaluation.branch

        def measure(part: EvalImages, batch: int) -> Score:
            batches = part.batches(batch, self.device, channels_last=layout)
            return score(model, batches, precision.autocast(), branch)

        return Score.joined(self._on_parts(images, measure))

    def robust_accuracy(self) -> float:
        """Accuracy of the model as it is now under the recipe's test attack."""
        settings = self.recipe.evaluation

        def measure(part: EvalImages, batch: int) -> Robustness:
            with self.trainer.precision.autocast():
                return robust_accuracy(
                    self.trainer.update.evaluated_model,
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


def build(
    recipe: Recipe,
    world: World | None = None,
    splits: Splits | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> Built:
    """Load the data and make model, optimizer, adversary and trainer.

    Reseeds torch's global random stream: the initial weights are a function of the recipe.

    Args:
        recipe: What to train and how.
        world: This process among those of the run; None is a process on its own.
        splits: The images; None loads the recipe's.
        weights: What ``model.weights`` names, to begin with; see `start_from`.
        download: Whether pretrained weights are needed; false where others follow.
        say: Told which of the weights were taken.

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
    with doing(f"preparing to read data.dataset={recipe.data.dataset} step by step"):
        feed = _mixed(recipe, splits.feed(recipe, slots), splits.facts)
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, splits.facts, weights, download=download, say=say)
    with doing(f"trying the network out (model.name={recipe.model.name})"):
        shape, outputs = _image_shape(recipe, splits, device), len(splits.facts.classes)
        try_model(recipe.model.name, model.to(device), shape, outputs)
    sharded = world.size > 1 and recipe.hardware.parallel == "fsdp"
    if recipe.hardware.channels_last and not sharded:  # fully_shard takes contiguous weights only
        model = model.to(memory_format=torch.channels_last)
    with doing(f"sharing the network among {world.size} processes (hardware.parallel)"):
        exchange = _exchange(recipe, model, world)
    adversary = make_adversary(recipe, exchange.wrapped, splits.facts, len(slots))
    if isinstance(adversary, conadv.WeightAdversary):
        adversary.wait_within(world.watchdog.waiting)
    classes = recipe.model.num_classes or len(splits.facts.classes)
    precision = Precision(device, autocast_dtype(recipe.hardware.precision, device))
    trainer = Trainer(
        model,
        adversary,
        make_update(recipe, model, precision, count, world.size),
        make_criterion(recipe, classes, splits.train_labels, device),
        feed,
        exchange,
        precision,
    )
    if world.size > 1 and not sharded:
        with doing("taking a first pass through every branch"):
            trainer.warm_up_buckets(_unfilled(_of_images(adversary), recipe.branches))
    every = max(1, round(recipe.evaluation.every_epochs * recipe.steps_per_epoch(count)))
    return Built(recipe, world, device, splits, splits.validation(), adversary, trainer, every)


def _of_images(adversary: StepAdversary) -> conadv.Adversary:
    return adversary if isinstance(adversary, conadv.Adversary) else adversary.adversary


def _image_shape(recipe: Recipe, splits: Splits, device: torch.device) -> tuple[int, ...]:
    """(C, H, W) of a training image."""
    if recipe.data.dataset == "files":
        return splits.facts.channels, recipe.data.files.size, recipe.data.files.size
    images, _ = next(splits.train(1).batches(1, device))
    return tuple(images.shape[1:])


def _unfilled(adversary: conadv.Adversary, branches: Sequence[str]) -> list[str]:
    """Branches that have no images in a first round: before there are pending copies."""
    filled = {adversary.clean_branch}
    if adversary.schedule.copies_at_once:
        filled.add(adversary.adversarial_branch)
    return [name for name in branches if name not in filled]


def _mixed(recipe: Recipe, feed: Feed, facts: Facts) -> Feed:
    mixup, cutmix = recipe.train.mixup, recipe.train.cutmix
    if not (mixup or cutmix):
        return feed
    from conadv.trainer.data.decoding import Mixing

    classes = recipe.model.num_classes or len(facts.classes)
    mixing = Mixing(classes, mixup, cutmix)  # the criterion smooths the labels
    mixed: Any = MixedFeed(feed, mixing, recipe.seed)
    return mixed  # type: ignore[no-any-return]


def _exchange(recipe: Recipe, model: nn.Module, world: World) -> Exchange:
    called: Any = torch.compile(model) if recipe.hardware.compile else model
    if world.size == 1:
        return Exchange(called)
    if recipe.hardware.parallel == "fsdp":
        return FullySharded(model, world)
    return DataParallel(model, called, world)


def make_model(
    recipe: Recipe,
    facts: Facts,
    weights: Mapping[str, Tensor] | None = None,
    *,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> nn.Module:
    """The network, its normalisation split into the recipe's branches; arguments as in `build`.

    Raises:
        RecipeError: The recipe does not fit the data, or evaluates through a branch that its
            model does not have.
    """
    branches = recipe.branches
    for field, branch in (
        ("evaluation.branch", recipe.evaluation.branch),
        ("attack.branch", recipe.attack.branch),
    ):
        if branch not in (None, *branches):
            raise RecipeError(
                f"{field}={branch} with method.schedule={recipe.method.schedule}: its model has "
                f"the clean branch only. Set {field}=clean, or another method.schedule."
            )
    model = build_model(recipe.model, facts.channels, len(facts.classes), download=download)
    if weights is not None:
        taken = start_from(model, weights)
        if say is not None:
            say(f"from {recipe.model.weights}: {taken}")
    group = recipe.norm_group if recipe.norm_group != recipe.micro_batch else None
    if len(branches) == 1 and group is None:
        return model  # nothing to split: an ordinary network at an ordinary network's speed
    return conadv.split_norms(
        model,
        branches,
        statistics=recipe.norm.statistics,
        group_size=group,
        layer_norm=recipe.norm.layer_norm,
    )


def make_adversary(recipe: Recipe, model: nn.Module, facts: Facts, rounds: int) -> StepAdversary:
    """The adversary on the model, or on what it is wrapped in.

    Args:
        recipe: Schedules and attacks.
        model: Bare, compiled or in DistributedDataParallel.
        facts: Mean and std of the data set.
        rounds: Micro-batches of a step on this rank.
    """
    # Where there is no adversarial branch, pictures of the attack are taken through the clean one.
    branch = BRANCHES[-1] if BRANCHES[-1] in recipe.branches else BRANCHES[0]
    of_images = conadv.Adversary(
        model,
        make_attack(recipe, facts),
        recipe.method.make(rounds),
        seed=recipe.seed,
        adversarial_branch=branch,
        track_agreement=recipe.method.track_agreement,
        loss=recipe.method.loss,
    )
    if not recipe.weights.on:
        return of_images
    return conadv.WeightAdversary(
        model,
        recipe.weights.attack(),
        recipe.weights.make(),
        adversary=of_images,
        rounds=rounds,
        seed=recipe.seed,
    )


def make_attack(recipe: Recipe, facts: Facts) -> conadv.Attack:
    """The attack of training, on images standardised with the data set's mean and std."""
    return conadv.Attack(mean=facts.mean, std=facts.std, **dict(recipe.attack))


def make_test_attack(recipe: Recipe, facts: Facts) -> conadv.Attack:
    """What ``robust_accuracy`` is measured with: FGSM, or PGD from a random start."""
    steps = recipe.evaluation.robust_steps
    attack = conadv.Attack(
        recipe.robust_epsilon, mean=facts.mean, std=facts.std, norm=recipe.attack.norm
    )
    return replace(attack, steps=steps, random_start=1.0) if steps else attack

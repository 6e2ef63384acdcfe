"""From a recipe to a trainer that is ready for its first step."""

from dataclasses import dataclass

import torch
from torch import nn

from conadv.analysis import robust_accuracy
from conadv.precision import autocast_dtype, resolve_device
from conadv.training.feed import ResidentFeed
from conadv.training.measure import Images, Score, score
from conadv.training.method import make_adversary, make_model, make_test_attack
from conadv.training.recipe import Recipe
from conadv.training.splits import Splits, load_splits
from conadv.training.trainer import Numerics, Trainer
from conadv.training.updates import learning_rate_factor, make_optimizer


@dataclass(frozen=True)
class Built:
    """A recipe made real."""

    recipe: Recipe
    device: torch.device
    splits: Splits
    validation: Images | None
    trainer: Trainer
    evaluate_every: int
    """Steps between looks at the validation split."""

    def score(self, images: Images) -> Score:
        """Loss and accuracy of the model as it is now (its average, with EMA)."""
        settings = self.recipe.evaluation
        batches = images.batches(
            settings.batch, self.device, channels_last=self.recipe.hardware.channels_last
        )
        model, numerics = self.trainer.evaluated_model, self.trainer.numerics
        return score(model, batches, numerics.autocast(), settings.branch)

    def robust_accuracy(self) -> float:
        """Accuracy of the model as it is now under the recipe's test attack."""
        settings = self.recipe.evaluation
        images = self.splits.test().first(settings.robust_images)
        with self.trainer.numerics.autocast():
            found = robust_accuracy(
                self.trainer.evaluated_model,
                images.batches(settings.batch, self.device),
                make_test_attack(self.recipe, self.splits.dataset),
                branch=settings.branch,
                seed=self.recipe.seed,
            )
        return found.robust_accuracy


def build(recipe: Recipe) -> Built:
    """Load the data and make model, optimizer, adversary and trainer.

    Reseeds torch's global random stream: the initial weights are a function of the recipe.

    Raises:
        RecipeError: The recipe does not fit its data or this machine.
        DataError: The data cannot be had.
    """
    device = resolve_device(recipe.hardware.device)
    splits = load_splits(recipe, device)
    count = len(splits.train_indices)
    feed = ResidentFeed(recipe, splits.dataset, splits.train_indices, device)
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, splits.dataset).to(device)
    if recipe.hardware.channels_last:
        model = model.to(memory_format=torch.channels_last)
    trainer = Trainer(
        model=model,
        adversary=make_adversary(recipe, model, splits.dataset),
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
    )
    every = round(recipe.evaluation.every_epochs * recipe.steps_per_epoch(count))
    return Built(recipe, device, splits, splits.validation(), trainer, max(1, every))

"""The generalisation gap: how much worse a model is on images that it was not trained on."""

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from conadv.attack import Criterion
from conadv.lab.analysis.passes import Batches, Score, evaluated, score


@dataclass(frozen=True)
class GeneralisationGap:
    """Both sides of the gap."""

    train: Score
    test: Score

    @property
    def loss_gap(self) -> float:
        """Test loss minus training loss."""
        return self.test.loss - self.train.loss

    @property
    def accuracy_gap(self) -> float | None:
        """Training accuracy minus test accuracy, a fraction; None where there is no accuracy."""
        if self.train.accuracy is None or self.test.accuracy is None:
            return None
        return self.train.accuracy - self.test.accuracy


def generalisation_gap(
    model: nn.Module,
    train: Batches,
    test: Batches,
    criterion: Criterion = cross_entropy,
    *,
    branch: str | None = None,
) -> GeneralisationGap:
    """Loss and accuracy on training and test images, both in eval mode.

    The training loss that a trainer logs is another thing: it is taken on augmented images, with
    batch statistics, and while the weights move. Give the images as they are tested.

    Args:
        model: Maps images to logits of shape (N, classes); left as it was.
        train: (images, labels) that it was trained on, without augmentation.
        test: (images, labels) that it was not.
        criterion: ``criterion(outputs, labels)``, the mean over the images it is given.
        branch: Normalisation branch; None takes the model's first.

    Raises:
        ValueError: No images on one of the sides, or no such branch.
    """
    frozen = evaluated(model, branch)
    return GeneralisationGap(score(frozen, train, criterion), score(frozen, test, criterion))

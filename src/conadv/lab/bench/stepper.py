"""One schedule's training step, as a user's loop takes it, ready to be measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import conadv
from conadv import weights
from conadv.optim import LARS, param_groups
from conadv.schedules import VARIANTS, Schedule
from conadv.trainer.probe.memory import seconds_of
from conadv.trainer.step import Precision
from conadv.weights import WeightSchedule

SCHEDULES: dict[str, Callable[[], Schedule | WeightSchedule]] = {
    **{name: partial(cls, **settings) for name, (cls, settings) in VARIANTS.items()},
    "sequential weights": weights.Sequential,
    "recycled weights": weights.Recycled,
    "recycled-budget weights": partial(weights.Recycled, budget="fixed"),
    "lookahead weights": weights.Lookahead,
}
"""What is measured, by the name in the table. Each entry makes a new schedule object."""


@dataclass(frozen=True)
class Settings:
    """One benchmark: which model, on how many images, where and in which precision."""

    model: str = "cifar/resnet18"
    batch: int = 128
    image_size: int = 32
    classes: int = 10
    device: str = "cpu"
    dtype: str = "bfloat16"
    compile: bool = False

    def autocast(self) -> torch.autocast:
        """The autocast block of a step."""
        dtype = None if self.dtype == "float32" else getattr(torch, self.dtype)
        return Precision(torch.device(self.device), dtype).autocast()


def _adversary(
    model: nn.Module, schedule: Schedule | WeightSchedule
) -> conadv.Adversary | conadv.WeightAdversary:
    if isinstance(schedule, Schedule):
        attack = conadv.Attack(4 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
        return conadv.Adversary(model, attack, schedule)
    # The batch is one device's micro-batch, whose own part needs those of others.
    return conadv.WeightAdversary(model, conadv.WeightAttack(centred=False), schedule)


class Stepper:
    """One schedule's model, optimizer and data, ready to take training steps."""

    def __init__(self, settings: Settings, schedule: Schedule | WeightSchedule) -> None:
        from conadv.trainer.models.zoo import create_model

        torch.manual_seed(0)
        self.settings = settings
        device = torch.device(settings.device)
        model = create_model(settings.model, in_chans=3, num_classes=settings.classes)
        conadv.split_norms(model)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            model.compile()
        self.adversary = _adversary(model, schedule)
        self.optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=0.1)
        fresh = self.adversary.fresh_images(settings.batch)
        shape = (fresh, 3, settings.image_size, settings.image_size)
        images = ((torch.rand(shape) - 0.5) / 0.25).to(device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, settings.classes, (fresh,), device=device)

    def step(self) -> None:
        """One training step, as in a user's loop; it is shown the same images as later ones."""
        self.adversary.peek(self.images, self.labels)
        with self.settings.autocast():
            loss = self.adversary.loss(self.images, self.labels, cross_entropy)
        loss.backward()
        self.adversary.collect()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Time of one step."""
        return seconds_of(self.step, torch.device(self.settings.device))

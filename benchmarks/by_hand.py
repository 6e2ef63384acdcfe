"""Images per second of the trainer's step beside a loop that is written by hand.

    python benchmarks/by_hand.py --json benchmarks/results/by-hand-cpu.json

The loop is what one writes in plain PyTorch for one recipe: images that lie in memory as bytes,
crop, flip, autocast, channels_last, LARS; it keeps no metrics, checks nothing and cannot be
resumed. Both train a network of their own on the same images, on one thread of one process, and
take turns; ratios are those of one round. Goal: at least 0.95 of its images per second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _result import load, ratios, timed, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from conadv.optim import LARS, param_groups, warmup_poly
from conadv.trainer.build import build
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.input.resident_splits import ResidentSplits
from conadv.trainer.models.zoo import create_model
from conadv.trainer.recipe import Recipe, load_recipe

GOAL = 0.95
"""Smallest median of the trainer's images per second over the loop's."""
WARM_UP = 3
"""Steps of each before the first that counts."""


class ByHand:
    """The loop; its settings are a recipe's, which has a constant batch, LARS and no copies.

    Args:
        recipe: Network, batch, crop, learning rate.
        data: All images.
        chosen: Which of them are trained on.
    """

    def __init__(self, recipe: Recipe, data: ImageDataset, chosen: Tensor) -> None:
        torch.manual_seed(recipe.seed)
        self.batch, self.padding = recipe.batch.global_batch, recipe.data.crop_padding
        self.smoothing, self.peak = recipe.train.label_smoothing, recipe.optimizer.lr
        self.total, self.warmup = recipe.total_steps(len(chosen)), recipe.warmup_steps(len(chosen))
        self.precision = torch.float32 if recipe.hardware.precision == "fp32" else torch.bfloat16
        images = data.train_images[chosen]
        self.side = images.shape[-1]
        self.images = pad(images, (self.padding,) * 4).permute(0, 2, 3, 1).contiguous()
        self.labels = data.train_labels[chosen]
        self.mean, self.std = 255 * torch.tensor(data.mean), 255 * torch.tensor(data.std)
        network = create_model(recipe.model.name, images.shape[1], len(data.classes))
        self.model = network.to(memory_format=torch.channels_last).train()
        self.optimizer = LARS(
            param_groups(self.model, recipe.optimizer.weight_decay),
            lr=self.peak,
            momentum=recipe.optimizer.momentum,
            trust_coefficient=recipe.optimizer.trust_coefficient,
        )
        self.order, self.step_number = torch.empty(0, dtype=torch.int64), 0

    def step(self) -> Tensor:
        """Train on the next images of a random order; the loss."""
        rate = self.peak * warmup_poly(self.step_number, self.total, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.labels))
        now, self.order = self.order[: self.batch], self.order[self.batch :]
        images, labels = self.augmented(now), self.labels[now]
        with torch.autocast("cpu", self.precision, enabled=self.precision is not torch.float32):
            loss = cross_entropy(self.model(images), labels, label_smoothing=self.smoothing)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return loss.detach()

    def augmented(self, chosen: Tensor) -> Tensor:
        """Random crops of padded images, half of them mirrored, standardised."""
        count = (len(chosen), 1)
        rows = torch.randint(2 * self.padding + 1, count) + torch.arange(self.side)
        columns = torch.randint(2 * self.padding + 1, count) + torch.arange(self.side)
        columns = torch.where(torch.rand(count) < 0.5, columns.flip(1), columns)
        images = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images.float().sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)


def measure(recipe: Recipe, rounds: int, steps: int) -> dict[str, Any]:
    """So many steps of both in every round, in turn."""
    built = build(recipe)
    splits = built.splits
    assert isinstance(splits, ResidentSplits)
    loop = ByHand(recipe, splits.dataset, splits.train_indices)
    cells = {"trainer": built.trainer.train_step, "loop": loop.step}
    for _ in range(WARM_UP):
        for step in cells.values():
            step()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cells}
    for number in range(rounds):
        for name in cells if number % 2 == 0 else reversed(cells):
            step = cells[name]
            seconds[name].append(timed(lambda step=step: [step() for _ in range(steps)]))
    images = steps * recipe.batch.global_batch
    return {
        "recipe": recipe.name,
        "model": recipe.model.name,
        "batch": recipe.batch.global_batch,
        "precision": str(loop.precision).removeprefix("torch."),
        "channels_last": recipe.hardware.channels_last,
        "rounds": rounds,
        "steps": steps,
        "over_loop": ratios(seconds["loop"], seconds["trainer"]),
        "images_per_second": {
            name: images / statistics.median(wall for wall, _ in found)
            for name, found in seconds.items()
        },
        "goal": GOAL,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="cifar10-5k-resnet9-125")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of each in a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="of the recipe, such as train.epochs=100")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = load()
    fixed = ["hardware.device=cpu", "hardware.threads=1", "hardware.precision=bf16"]
    recipe = load_recipe(given.recipe, [*fixed, *given.settings])
    found = measure(recipe, given.rounds, given.steps)
    over, rate = found["over_loop"], found["images_per_second"]
    print(f"{rate['trainer']:,.0f} images/s, the loop {rate['loop']:,.0f}")
    for kind, its in over.items():
        print(f"{kind:9} x{its['median']:.3f} ({its['least']:.3f}-{its['most']:.3f})")
    missed = over["wall"]["median"] < GOAL
    print(f"goal of {GOAL} MISSED" if missed else "goal met")
    write_result(given.json, found, before)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

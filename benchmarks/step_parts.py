"""Where the processor time of a training step goes: the network's own operations, and the rest.

    python benchmarks/step_parts.py --json benchmarks/results/step-parts-cpu.json

On one thread and in processor time, which other programs on the machine hardly change. A step of
`conadv train` (images read and augmented, forward and backward, one update of the weights), the
network's forward and backward alone on as many images, and its convolutions alone, each with the
shapes that it meets, are taken in turn; ratios are those of one round. What is neither, images nor
update, is what the trainer itself decides and launches: the host's overhead, with a goal of 3 %.
No trainer can be quicker than the convolutions: step over convolutions is how far it is from that.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _result import load, write_result
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conadv.trainer.build import Built, build
from conadv.trainer.recipe import load_recipe
from conadv.trainer.run import environment as machine

GOAL = 0.03
"""Share of a step that the host may take."""
WARM_UP = 3
"""Steps before the first that counts."""


class Watch:
    """Adds up the processor time of the calls of one function."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds = 0.0
        self._call = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return self._call(*arguments, **options)
        finally:
            self.seconds += time.process_time() - began


def seconds_of(action: Callable[[], object], times: int) -> float:
    """Processor seconds of one call, the mean of several."""
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times


def network_alone(built: Built, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Forward and backward of the network as it is trained, and nothing else."""
    model, precision = built.trainer.model, built.trainer.precision

    def passes() -> None:
        with precision.autocast():
            loss = cross_entropy(model(images), labels)
        loss.backward()

    return passes


def convolutions_alone(built: Built, images: Tensor) -> Callable[[], object]:
    """Forward and backward of every convolution, on inputs of the shapes that it meets."""
    met: list[tuple[nn.Module, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda layer, given, _: met.append((layer, given[0].detach())))
        for layer in built.trainer.model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    precision = built.trainer.precision
    with torch.no_grad(), precision.autocast():
        built.trainer.model(images)
    for handle in handles:
        handle.remove()
    # The first takes no gradient for its images, as in training.
    work = [(layer, given.clone().requires_grad_(n > 0)) for n, (layer, given) in enumerate(met)]
    with torch.no_grad(), precision.autocast():
        grads = [torch.randn_like(layer(given)) for layer, given in work]

    def passes() -> None:
        for (layer, given), grad in zip(work, grads, strict=True):
            with precision.autocast():
                out = layer(given)
            out.backward(grad)

    return passes


def measure(model: str, batch: int, rounds: int, steps: int, precision: str) -> dict[str, Any]:
    """One network; every part in every round, in turn."""
    recipe = load_recipe(
        "fashion-resnet8-vanilla",
        [
            *(f"model.name={model}", f"batch.global_batch={batch}", f"batch.micro_batch={batch}"),
            *("batch.norm_group=null", f"hardware.precision={precision}", "hardware.device=cpu"),
            *("train.epochs=null", f"train.steps={WARM_UP + rounds * steps}"),
            "lr_schedule.warmup_epochs=0",
        ],
    )
    built = build(recipe)
    trainer = built.trainer
    dtype = trainer.precision.autocast_dtype or torch.float32
    images, labels = trainer.feed.micro_batch(0, 0)
    network = network_alone(built, images, labels)
    convolutions = convolutions_alone(built, images)
    for _ in range(WARM_UP):
        trainer.train_step(), network(), convolutions()
    fed, applied = Watch(trainer.feed, "micro_batch"), Watch(trainer.update, "apply")
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        fed.seconds = applied.seconds = 0.0
        parts = {"step": seconds_of(trainer.train_step, steps)}
        parts |= {"images": fed.seconds / steps, "update": applied.seconds / steps}
        parts["network"] = seconds_of(network, steps)
        parts["convolutions"] = seconds_of(convolutions, steps)
        trainer.update.optimizer.zero_grad(set_to_none=True)
        parts["host"] = parts["step"] - sum(parts[k] for k in ("images", "update", "network"))
        for name, seconds in parts.items():
            found.setdefault(name, []).append(seconds)
    shares = {
        name: machine.spread([a / b for a, b in zip(found[name], found["step"], strict=True)])
        for name in ("images", "update", "network", "convolutions", "host")
    }
    return {
        "model": model,
        "batch": batch,
        "precision": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "steps": steps,
        "processor_seconds": {k: statistics.median(v) for k, v in found.items()},
        "share_of_step": shares,
        "step_over_convolutions": 1 / shares["convolutions"]["median"],
        "goal": GOAL,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure each network, print its shares, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["cifar/resnet8", "cifar/resnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="of each part in a round")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = load()
    rows = []
    for model in given.models:
        row = measure(model, given.batch, given.rounds, given.steps, given.precision)
        rows.append(row)
        shares = ", ".join(f"{k} {v['median']:.1%}" for k, v in row["share_of_step"].items())
        print(f"{model}: {shares}; {row['step_over_convolutions']:.2f}x convolutions", flush=True)
    write_result(given.json, {"rows": rows}, before)


if __name__ == "__main__":
    main()

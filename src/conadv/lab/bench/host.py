"""What the adversary costs the host per step, beside the network's own passes."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from conadv.lab.bench.stepper import Settings, Stepper
from conadv.schedules import Schedule

IMAGES = 2
"""So few that what is computed with them takes no time beside what is decided."""


class Stopwatch:
    """Adds up this thread's processor time, which other programs on the machine do not change."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._began = 0.0

    def start(self, *_: Any) -> None:
        """Enter a stretch."""
        if self._depth == 0:
            self._began = time.thread_time()
        self._depth += 1

    def stop(self, *_: Any) -> None:
        """Leave it."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.thread_time() - self._began

    @contextmanager
    def running(self) -> Iterator[None]:
        """A stretch, whatever comes of it."""
        self.start()
        try:
            yield
        finally:
            self.stop()


@contextmanager
def network_passes(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """`watch` runs inside while `model` computes, forwards and in `torch.autograd.grad`."""
    handles = [
        model.register_forward_pre_hook(watch.start),
        model.register_forward_hook(watch.stop, always_call=True),
    ]
    grad = torch.autograd.grad

    def watched(*arguments: Any, **options: Any) -> Any:
        with watch.running():
            return grad(*arguments, **options)

    torch.autograd.grad = watched
    try:
        yield
    finally:
        torch.autograd.grad = grad
        for handle in handles:
            handle.remove()


def host_seconds(settings: Settings, schedule: Schedule, repeats: int = 20) -> float:
    """Median processor time of `loss` and `collect` in a step beside network and criterion.

    On a few images and in eager mode: what is left is what the host decides and launches, which
    is the same for any number of images.

    Args:
        settings: of the benchmark; model, image size, device and precision count.
        schedule: a new object.
        repeats: steps that are measured, after three that are not.
    """
    few = replace(settings, batch=min(settings.batch, IMAGES), compile=False)
    stepper = Stepper(few, schedule)
    adversary, model = stepper.adversary, stepper.adversary.model
    found = []
    for repeat in range(3 + repeats):
        network, all_of_it = Stopwatch(), Stopwatch()
        criterion = network.running()(cross_entropy)
        with network_passes(model, network), all_of_it.running():
            adversary.peek(stepper.images, stepper.labels)
            with few.autocast():
                loss = adversary.loss(stepper.images, stepper.labels, criterion)
        loss.backward()
        with network_passes(model, network), all_of_it.running():
            adversary.collect()
        stepper.optimizer.step()  # what is looked at until the first step is not of every step
        stepper.optimizer.zero_grad(set_to_none=True)
        if repeat >= 3:
            found.append(all_of_it.seconds - network.seconds)
    return statistics.median(found)

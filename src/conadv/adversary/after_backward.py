"""What happens at the end of a backward pass by itself, and how often optimizers have stepped."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


def when_backward_ends(loss: Tensor, begun: Callable[[], None], ended: Callable[[], None]) -> None:
    """Call `begun` when a backward pass through `loss` starts and `ended` when it is over."""
    if not loss.requires_grad:
        return

    def hook(_: Tensor) -> None:
        begun()
        queue_last(ended)

    loss.register_hook(hook)


def queue_last(function: Callable[[], None]) -> None:
    """Call `function` at the end of the backward pass that is under way.

    After what was queued during the pass, too: DistributedDataParallel and fully_shard wait for
    their communication in such a callback, and fill the parameters' gradients.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(lambda: engine.queue_callback(function))


def entrance(
    images: Tensor, parameters: Sequence[nn.Parameter], arrived: Callable[[Tensor], None]
) -> Tensor:
    """`images`, which tell `arrived` their gradient; `parameters` get a gradient of zero.

    For a model whose loss is not ours to see: the gradient of its input is the last one that a
    backward pass computes, whatever it began with.
    """
    anchor = torch.zeros((), requires_grad=True)  # or no gradient would come this far
    return _Entrance.apply(images, anchor, arrived, *parameters)  # type: ignore[no-any-return]


class _Entrance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, anchor: Tensor, arrived: Any, *parameters: Tensor
    ) -> Tensor:
        ctx.arrived, ctx.parameters = arrived, parameters  # leaves: they keep no graph alive
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.arrived(gradient.detach())
        return (None, None, None, *(torch.zeros_like(parameter) for parameter in ctx.parameters))


class FinishedSteps:
    """How many optimizer steps this process has finished: two losses in one step are one round."""

    def __init__(self) -> None:
        self.count = 0
        self._watching = False

    def watch(self) -> None:
        """Count from now on, every torch optimizer's."""
        if not self._watching:
            self._watching = True
            register_optimizer_step_post_hook(self._finished)

    def _finished(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        self.count += 1


finished_steps = FinishedSteps()

"""What happens to accumulated gradients between the last backward and the optimizer's step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from conadv.optim._sharded import is_dtensor


def finish_gradients(
    parameters: Sequence[nn.Parameter],
    divisor: float,
    clip: float | None,
    change: Callable[[], None] = lambda: None,
) -> Tensor:
    """Turn a sum of micro-batch means into the mean over the step, and measure and clip it.

    Each micro-batch's loss is scaled as a mean over that micro-batch, not over the whole step: in
    fp16 the gradient of one image in a mean over 98,304 would underflow to zero. The division
    happens here, once, in the gradients' own precision.

    Args:
        parameters: Those the optimizer updates; ones without a gradient are left out.
        divisor: How many full micro-batches the step stands for.
        clip: Largest allowed norm, or None.
        change: Called with the mean gradients in place, to scale them down; before clipping.

    Returns:
        Norm of the whole gradient before it is changed or clipped, 0-dim.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if divisor != 1.0:
        torch._foreach_mul_(gradients, 1.0 / divisor)
    norm = nn.utils.get_total_norm(gradients)
    change()
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm.full_tensor() if is_dtensor(norm) else norm


class BufferGuard:
    """Remembers the buffers of a model, so that a void step cannot leave NaN statistics behind.

    Args:
        model: Any model; its buffers must keep their identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._saved = [b.detach().clone() for b in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the buffers as they are now."""
        _copy(self._saved, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was remembered last."""
        _copy(self._buffers, self._saved)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)

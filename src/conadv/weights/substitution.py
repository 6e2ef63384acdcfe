"""Passes through a model with other tensors in place of its weights, which are never written to.

So there is nothing to put back: not after an exception, not after a NaN. What a tensor is made of,
w + e, gets its gradient handed on by autograd, and DistributedDataParallel sees the parameters
themselves get one gradient per backward.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from conadv.branches.buffers import frozen_statistics
from conadv.branches.recomputation import checkpoint_frame
from conadv.branches.wrappers import is_optimized


class Substitution:
    """Runs code in which a model has other weights.

    Args:
        model: bare or wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._shell = _Shell(model)
        self.compiled = any(
            is_optimized(module) or getattr(module, "_compiled_call_impl", None) is not None
            for module in model.modules()
        )

    def run(
        self, weights: Mapping[str, Tensor], body: Callable[[], Any], *, frozen: bool = False
    ) -> Any:
        """What `body` returns while the model has `weights`, {name: tensor}.

        Activation checkpoints (without reentrant autograd) that begin in there are run again, in
        the backward, with the same weights.

        Args:
            weights: in place of the parameters of these names.
            body: calls the model.
            frozen: running statistics and other buffers stay as they are.
        """
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        within = frozen_statistics(self._shell.model) if frozen else nullcontext()
        follow = _quiet() if self.compiled else self._checkpoints(weights, frozen)
        with within, follow:
            return torch.func.functional_call(self._shell, named, (body,))

    @contextmanager
    def _checkpoints(self, weights: Mapping[str, Tensor], frozen: bool) -> Iterator[None]:
        def note(module: nn.Module, inputs: Any) -> None:
            frame = checkpoint_frame()
            if frame is None or getattr(frame, "conadv_weights", None) is weights:
                return
            frame.conadv_weights = weights
            again = frame.recompute_fn
            frame.recompute_fn = lambda *inputs: self.run(
                weights, partial(again, *inputs), frozen=frozen
            )

        handle = register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()


class _Shell(nn.Module):
    """Lets `functional_call` run any code, not one forward alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[], Any]) -> Any:
        return body()


@contextmanager
def _quiet() -> Iterator[None]:
    """The compiler looks whether its inputs have a gradient; asking tensors that are none warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        yield


def refuse_reentrant(output: Tensor | None) -> None:
    """Raise ValueError where a pass went through a checkpoint with reentrant autograd.

    It would be run again at the weights themselves: activations of one point, gradients of
    another, and nobody is told.
    """
    seen: set[Any] = set()
    queue = [] if output is None else [output.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "The model has activation checkpoints with reentrant autograd, which are run again "
                "without the perturbation: use checkpoint(..., use_reentrant=False)."
            )
        queue += [other for other, _ in node.next_functions]


def tap(weights: Mapping[str, Tensor], views: list[Tensor]) -> None:
    """Write each tensor's own gradient into its view, once the backward pass has it.

    Before it is added to anything else, and before DistributedDataParallel reduces the sum. A
    copy: the reducer and autograd reuse the memory.
    """
    for tensor, view in zip(weights.values(), views, strict=True):
        tensor.register_hook(partial(_write, view))


def _write(view: Tensor, gradient: Tensor) -> None:
    view.copy_(gradient.detach())


class GivenGradients(torch.autograd.Function):
    """A number whose gradients are known already, without the graph that they came from."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        """`value`; `gradients` are those with respect to `parameters`."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
        """Each gradient times the factor that arrives."""
        scaled = (None if g is None else g * factor.to(g.dtype) for g in ctx.gradients)
        return (None, None, *scaled)

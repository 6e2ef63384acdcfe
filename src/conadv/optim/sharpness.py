"""Sharpness-aware minimisation around any optimizer: SAM, and SAM with a stale ascent gradient.

Neither is an optimizer. Both move the weights uphill for the length of a ``with`` block, in which
the gradient of the update is taken, and put them back to the last bit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from conadv.optim.multi_tensor import norms_of
from conadv.optim.sharded import is_dtensor


class SAM:
    r"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby.

    With L the loss of the whole batch:

        g     = dL(w)                  the ascent gradient
        eps   = rho * g / |g|_2        over all parameters together
        w     = w - update(dL(w + eps))

    Equation 2 of the paper with p = 2, and its first-order gradient (equation 3). A step has two
    backward passes, one after the other: twice the compute of ordinary training.

    Args:
        parameters: those the optimizer updates; ones without a gradient are not perturbed.
        rho: length of the perturbation, at least 0; 0 is ordinary training. An attribute: it may
            follow training.

    Raises:
        ValueError: a negative rho, no parameters, or sharded ones (``fully_shard``).

    Example:
        >>> import torch
        >>> from conadv.optim import SAM
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sam = SAM(model.parameters(), rho=0.05)
        >>> model(torch.ones(3, 4)).square().sum().backward()
        >>> sam.take_gradient()
        >>> with sam.perturbed():
        ...     model(torch.ones(3, 4)).square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad(set_to_none=True)

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
        arXiv 2010.01412.
    """

    def __init__(self, parameters: Iterable[Tensor], rho: float = 0.05) -> None:
        if not (rho >= 0 and math.isfinite(rho)):
            raise ValueError(f"rho={rho}: give the length of the perturbation, at least 0.")
        self.rho = rho
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__} was given no parameters to perturb.")
        if any(is_dtensor(p) for p in self.parameters):
            raise ValueError(
                f"{type(self).__name__}: the parameters are sharded (fully_shard). Give those of "
                "an ordinary model or of one in DistributedDataParallel."
            )
        self._fresh: list[Tensor | None] | None = None

    def take_gradient(self) -> None:
        """The parameters' ``.grad`` is the ascent gradient; it is taken out of them.

        With gradient accumulation after all micro-batches, under DistributedDataParallel after the
        all-reduce: the norm is that of the whole batch's gradient. A factor on it has no effect.
        """
        # No copy: under DDP the gradients are views of buckets, which the second backward pass
        # overwrites, but by then the weights have been moved.
        self._fresh = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The weights are w + eps inside the block, and again w, bit for bit, after it.

        An ascent gradient that is NaN or infinite makes the weights in the block NaN, and so the
        loss there: a check of the loss finds it.

        Raises:
            RuntimeError: `take_gradient` was not called.
        """
        gradients = self._ascent()
        pairs = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        if not pairs or self.rho == 0:
            yield
            return
        weights, ascent = [p for p, _ in pairs], [g for _, g in pairs]
        with torch.no_grad():
            before = [p.detach().clone() for p in weights]
            _move(weights, ascent, self.rho)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, before)

    def _ascent(self) -> list[Tensor | None]:
        """What to climb along; None for parameters that stay."""
        if self._fresh is None:
            raise RuntimeError(
                "perturbed() without an ascent gradient: call take_gradient() first."
            )
        taken, self._fresh = self._fresh, None
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: nothing, between two steps."""
        return {"gradient": None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._fresh = None


class AsyncSAM(SAM):
    r"""Asynchronous SAM: the ascent gradient is that of the step before.

    With L_t the loss of the batch of step t:

        g_t   = dL_t(w_t)                            at the unperturbed weights
        eps_t = rho * g_(t-1) / |g_(t-1)|_2          0 in the first step
        w     = w - update(dL_t(w_t + eps_t))

    The two gradients of a step, g_t and the one of the update, do not depend on one another: on
    hardware that has room for both they take the time of one. The compute is that of SAM. The
    paper lets g_t be that of a part of the batch where the hardware for it is slower; call
    `take_gradient` after such a part's backward pass if you want that.

    Use it as `SAM`, a call of `take_gradient` and a block of `perturbed` in every step.

    Args:
        parameters: those the optimizer updates.
        rho: length of the perturbation.

    Raises:
        ValueError: as `SAM`.

    References:
        Jo, Lim and Lee, *Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep
        Learning*, arXiv 2503.11147, with its staleness of one step.
    """

    def __init__(self, parameters: Iterable[Tensor], rho: float = 0.05) -> None:
        super().__init__(parameters, rho)
        self._stale: list[Tensor | None] | None = None
        self._taken = False

    def take_gradient(self) -> None:
        """The parameters' ``.grad`` is the ascent gradient of the next step; they lose it."""
        self._stale = self._fresh
        # A copy: it has to outlive the buckets that DDP's gradients are views of.
        self._fresh = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        self._taken = True

    def _ascent(self) -> list[Tensor | None]:
        if not self._taken:
            raise RuntimeError(
                "perturbed() without an ascent gradient: call take_gradient() first."
            )
        self._taken = False
        return [None] * len(self.parameters) if self._stale is None else self._stale

    def state_dict(self) -> dict[str, Any]:
        """The gradient that the next step climbs along, one tensor or None per parameter.

        Loads with ``weights_only=True``. Take it between two steps; the tensors are not copied.
        """
        return {"gradient": None if self._fresh is None else list(self._fresh)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of other parameters.
        """
        gradients = state["gradient"]
        if gradients is not None:
            shapes = [None if g is None else g.shape for g in gradients]
            own = [p.shape for p in self.parameters]
            if len(shapes) != len(own) or any(
                shape is not None and shape != p for shape, p in zip(shapes, own, strict=True)
            ):
                raise ValueError(
                    f"The state of AsyncSAM is of {len(shapes)} parameters of other shapes than "
                    f"the {len(own)} here: continue with the model that the run began with."
                )
            gradients = [
                None if g is None else g.to(p)
                for g, p in zip(gradients, self.parameters, strict=True)
            ]
        self._fresh, self._stale, self._taken = gradients, None, False


def _move(weights: list[Tensor], ascent: list[Tensor], rho: float) -> None:
    """``w += rho * g / |g|``, in place; a gradient of 0 moves nothing."""
    alike: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for w, g in zip(weights, ascent, strict=True):
        own = alike.setdefault((w.device, w.dtype), ([], []))
        own[0].append(w)
        own[1].append(g)
    norms = torch.cat([norms_of(gs).to(weights[0].device) for _, gs in alike.values()])
    length = torch.linalg.vector_norm(norms)
    scale = torch.where(length > 0, rho / length, torch.zeros_like(length))
    for (device, dtype), (ws, gs) in alike.items():
        torch._foreach_add_(ws, torch._foreach_mul(gs, scale.to(device=device, dtype=dtype)))

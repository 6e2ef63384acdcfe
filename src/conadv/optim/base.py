"""What LARS, LAMB and Muon share: the frame of a step, checks, loading a state."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from conadv.optim.multi_tensor import Norms
from conadv.optim.sharded import (
    Layout,
    Unfinished,
    check_loaded,
    finish_all,
    layout_of,
    local_gradient,
)

IMPLEMENTATION = ("foreach", "capturable")
"""Settings of how a step is computed. They belong to the optimizer, not to a saved state."""

Implementation = Literal["reference", "foreach"]

Update = tuple[Norms, Callable[[Norms], None]]
"""The norms behind the trust ratios of some tensors, and what completes their update given those
of the whole parameters, which these tensors may be parts of. None without trust ratios."""


class CheckedOptimizer(Optimizer):
    """The frame of a step: closure, groups, gradients, and checks of what is given.

    Subclasses say what a group's settings may be and how its parameters are updated.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.

        Returns:
            What the closure returned, or None without one.

        Raises:
            RuntimeError: a gradient is sparse, a CUDA graph captures this step of an optimizer
                without ``capturable=True``, or a DTensor is a sum that is still to be taken.
        """
        if not torch.compiler.is_compiling():
            self._check_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        waiting: list[tuple[Layout, Unfinished]] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"{type(self).__name__} does not support sparse gradients (parameter of "
                        f"shape {tuple(p.shape)}). Make the embedding with sparse=False, or give "
                        "this parameter to torch.optim.SparseAdam."
                    )
            waiting += self._update_group(params, group)
        finish_all(waiting)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; keys that it lacks are taken from the constructor's arguments.

        Raises:
            ValueError: a setting out of range, or a parameter that cannot be updated.
        """
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for index, p in enumerate(self.param_groups[-1]["params"]):
            problem = self._problem(p)
            if problem is not None:
                self.param_groups.pop()
                raise ValueError(
                    f"{type(self).__name__}: parameter {index} of the group, of shape "
                    f"{tuple(p.shape)}, is {problem}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state saved before a setting existed
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _update_group(
        self, params: list[Tensor], group: dict[str, Any]
    ) -> list[tuple[Layout, Unfinished]]:
        """Update parameters that have a gradient; returns what waits for norms of other ranks."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for settings that are out of range."""
        raise NotImplementedError

    def _problem(self, p: Tensor) -> str | None:
        """The reason why a parameter cannot be updated, and what to do; None if it can."""
        if p.is_complex():
            return (
                f"{p.dtype}; real parameters are allowed. Optimize torch.view_as_real(parameter), "
                "or use torch.optim.SGD or Adam for it."
            )
        return None

    def _check_capture(self) -> None:
        """Raise RuntimeError if a CUDA graph captures a step that it could not replay."""


class LayerwiseOptimizer(CheckedOptimizer):
    """An optimizer that scales the update of each parameter tensor by a trust ratio.

    Parameters may be DTensors, as `torch.distributed.fsdp.fully_shard` makes them: the norms
    are those of the whole tensors, with one all-reduce in a step. Every rank has to take the
    step, with gradients of the same parameters.

    Groups have, besides the keys of the subclass, ``lr``, ``weight_decay``, ``adapt`` (whether
    the trust ratio applies), ``maximize`` and the keys in :data:`IMPLEMENTATION`.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, {"adapt": True, **defaults})

    def _update_group(
        self, params: list[Tensor], group: dict[str, Any]
    ) -> list[tuple[Layout, Unfinished]]:
        waiting: list[tuple[Layout, Unfinished]] = []
        buckets: dict[tuple[torch.device, torch.dtype, bool, Layout | None], list[Tensor]] = {}
        for p in params:
            # Whether multi-tensor operations may take it as it is: no tensor subclass.
            ordinary = type(p) in (Tensor, torch.nn.Parameter)
            layout = None if ordinary else layout_of(p)
            buckets.setdefault((p.device, p.dtype, ordinary, layout), []).append(p)
        for (_, _, ordinary, layout), alike in buckets.items():
            usual = ordinary or layout is not None
            together = usual if group["foreach"] is None else group["foreach"]
            implementation: Implementation = "foreach" if together else "reference"
            for norms, finish in self._updates(alike, group, implementation):
                if norms is None or layout is None or not layout.dims:
                    finish(norms)
                else:
                    waiting.append((layout, Unfinished(torch.stack(norms, dim=-1), finish)))
            if layout is not None:  # written to behind the DTensors' backs
                torch.autograd.graph.increment_version(alike)
        return waiting

    def _updates(
        self, params: list[Tensor], group: dict[str, Any], implementation: Implementation
    ) -> Iterator[Update]:
        """Begin to update parameters of one device and dtype, all of which have a gradient.

        Of DTensors these are the parts that this rank holds. One update after the other: each is
        finished before the next one begins, unless it waits for other ranks.
        """
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; ``foreach`` and ``capturable`` stay as they are here.

        So a run may go on with another implementation than the one that it was saved with. Every
        other setting is taken from the saved state, as torch's optimizers do.

        Raises:
            ValueError: the state is of another number of parameters, or of a whole model and this
                one is sharded, or the other way round.
        """
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        check_loaded(params, (state_dict["state"].get(key, {}) for key in saved))
        own = [{key: group[key] for key in IMPLEMENTATION} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)

    def _check_group(self, s: dict[str, Any]) -> None:
        at_least_zero(self, s, "lr", "weight_decay", "eps")
        if s["trust_clip"] is not None and not s["trust_clip"] > 0:
            raise ValueError(
                f"{type(self).__name__}: trust_clip={s['trust_clip']!r}; give an upper bound of "
                "the trust ratio above 0, or None."
            )

    def _check_capture(self) -> None:
        if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
            return
        if not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError(
                f"A CUDA graph captures a step of {type(self).__name__}, which would replay this "
                "step's learning rate and step count for ever. Make the optimizer with "
                "capturable=True, and lr as a tensor on the device if it is to change."
            )


def at_least_zero(optimizer: Optimizer, settings: dict[str, Any], *names: str) -> None:
    """Raise ValueError unless the named settings are finite numbers of at least 0."""
    for name in names:
        value = settings[name]
        if isinstance(value, Tensor) and name == "lr":
            if value.numel() != 1:
                raise ValueError(
                    f"{type(optimizer).__name__}: lr is a tensor of shape {tuple(value.shape)}; "
                    "give a number or a tensor with one element."
                )
        elif not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ValueError(
                f"{type(optimizer).__name__}: {name}={value!r}; give a number of at least 0."
            )


def in_unit_interval(optimizer: Optimizer, name: str, value: Any) -> None:
    """Raise ValueError unless a decay rate is at least 0 and below 1."""
    if not (isinstance(value, int | float) and 0 <= value < 1):
        raise ValueError(
            f"{type(optimizer).__name__}: {name}={value!r}; give a number of at least 0 and "
            "below 1."
        )


def check_betas(optimizer: Optimizer, betas: Sequence[Any]) -> None:
    """Raise ValueError unless there are two decay rates, each at least 0 and below 1."""
    if len(betas) != 2:
        raise ValueError(f"{type(optimizer).__name__}: betas={betas!r}; give two numbers.")
    for index, beta in enumerate(betas):
        in_unit_interval(optimizer, f"betas[{index}]", beta)


def gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one; of DTensors this rank's parts."""
    return [local_gradient(p.grad, p) for p in params if p.grad is not None]


def learning_rate(group: dict[str, Any], device: torch.device) -> float | Tensor:
    """The group's learning rate; a tensor comes without dimensions and on the device."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()).to(device) if isinstance(lr, Tensor) else float(lr)

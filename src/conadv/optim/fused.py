"""Compiled steps of LARS and LAMB.

On the CPU the reference function itself is compiled, once, for a flat tensor of any length, and
called for each large parameter: one pass over w and g for the norms and one pass for the update,
which finds most of its operands in the cache. The many small parameters (bias, norm) together
take the multi-tensor operations, which is quicker than a call for each.

Elsewhere the multi-tensor function is compiled for the whole list, so that a step is a handful of
kernel launches instead of some for each parameter.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from conadv.optim.multi_tensor import lamb_list_, lars_list_
from conadv.optim.reference import LAMBSettings, LARSSettings, Number, lamb_, lars_

MIN_ELEMENTS = 16_384
"""Parameters with fewer elements are not worth a call of a compiled function of their own."""


def fused_lars(
    weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor] | None, s: LARSSettings
) -> None:
    """As :func:`conadv.optim.multi_tensor.lars_list_`, compiled."""
    if weights[0].device.type != "cpu":
        compiled_lars_list(weights, grads, buffers, s)
        return
    kernel = _lars_kernel(_Structure.of(s))
    numbers = _numbers(
        weights[0], s.lr, s.momentum, s.weight_decay, s.trust_coefficient, s.eps, s.trust_clip
    )
    lists = [weights, grads] if buffers is None else [weights, grads, buffers]
    rest = [
        index
        for index, tensors in enumerate(zip(*lists, strict=True))
        if not kernel.on_flat(tensors, (numbers,))
    ]
    if rest:
        small = [[item[i] for i in rest] for item in lists]
        lars_list_(small[0], small[1], small[2] if buffers is not None else None, s)


def fused_lamb(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> None:
    """As :func:`conadv.optim.multi_tensor.lamb_list_`, compiled."""
    if weights[0].device.type != "cpu":
        compiled_lamb_list(weights, grads, firsts, seconds, corrections, s)
        return
    kernel = _lamb_kernel(_Structure.of(s))
    numbers = _numbers(weights[0], s.lr, s.beta1, s.beta2, s.eps, s.weight_decay, s.trust_clip)
    dtype = numbers.dtype
    c1, c2 = (torch.as_tensor(c, dtype=dtype).expand(len(weights)) for c in corrections)
    shared = (c1[0], c2[0]) if not isinstance(corrections[0], Tensor) else None
    rest = [
        index
        for index, tensors in enumerate(zip(weights, grads, firsts, seconds, strict=True))
        if not kernel.on_flat(tensors, (numbers, *(shared or (c1[index], c2[index]))))
    ]
    if rest:
        w, g, m, v = ([a[i] for i in rest] for a in (weights, grads, firsts, seconds))
        first, second = (c[rest] if isinstance(c, Tensor) else c for c in corrections)
        lamb_list_(w, g, m, v, (first, second), s)


def compiled_lars_list(
    weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor] | None, s: LARSSettings
) -> None:
    """:func:`lars_list_` compiled for just these shapes and settings; ``lr`` may change."""
    kernel = _lars_list_kernel(replace(s, lr=0.0))
    bare = (_bare(weights), _bare(grads), None if buffers is None else _bare(buffers))
    if kernel.run(*bare, torch.as_tensor(s.lr)):
        torch.autograd.graph.increment_version(weights + (buffers or []))
    else:
        lars_list_(weights, grads, buffers, s)


def compiled_lamb_list(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> None:
    """:func:`lamb_list_` compiled for just these shapes and settings; ``lr`` may change."""
    kernel = _lamb_list_kernel(replace(s, lr=0.0))
    lists = [_bare(item) for item in (weights, grads, firsts, seconds)]
    first, second = (torch.as_tensor(c) for c in corrections)
    if kernel.run(*lists, first, second, torch.as_tensor(s.lr)):
        torch.autograd.graph.increment_version(weights + firsts + seconds)
    else:
        lamb_list_(weights, grads, firsts, seconds, corrections, s)


@dataclass(frozen=True)
class _Structure:
    """Settings that change the compiled code; the numbers are its inputs."""

    adapt: bool
    maximize: bool
    clipped: bool
    first: bool
    """nesterov or bias_correction."""
    second: bool
    """lr_in_momentum or grad_averaging."""

    @classmethod
    def of(cls, s: LARSSettings | LAMBSettings) -> "_Structure":
        clipped = s.trust_clip is not None
        if isinstance(s, LARSSettings):
            return cls(s.adapt, s.maximize, clipped, s.nesterov, s.lr_in_momentum)
        return cls(s.adapt, s.maximize, clipped, s.bias_correction, s.grad_averaging)


class _Kernel:
    """A function that is compiled by its first call, or given up for good with a warning."""

    def __init__(self, function: Callable[..., None], dynamic: bool) -> None:
        # Compiled variants are counted per code object, and beyond a few torch gives up: closures
        # of one function must not share that count.
        function.__code__ = function.__code__.replace()
        self._compiled: Callable[..., Any] | None = None
        self._function = function
        self._dynamic = dynamic
        self._works = True

    def run(self, *arguments: Any) -> bool:
        """Call it; False if it cannot be compiled here, in which case nothing was changed."""
        if not self._works:
            return False
        from torch._dynamo import exc  # takes a second: only for those who asked for it

        errors = (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(
                    self._function, fullgraph=True, dynamic=self._dynamic
                )
            self._compiled(*arguments)
        except errors as error:
            self._works = False
            cause = getattr(error, "inner_exception", error)
            first = next((line for line in str(cause).splitlines() if line.strip()), "")
            warnings.warn(
                f"fused=True: torch.compile failed ({type(cause).__name__}: {first[:200]}). The "
                "step is done by multi-tensor operations instead: the same results, slower. On "
                "the CPU a C++ compiler is needed (g++ or clang, or named by CXX), on a GPU "
                "Triton; or pass fused=False.",
                stacklevel=6,
            )
            return False
        return True

    def on_flat(self, tensors: Sequence[Tensor], others: tuple[Tensor, ...]) -> bool:
        """Call it on flattened tensors; False if they are small, or cannot be flattened alike.

        All but the second of the tensors, the gradient, count as changed.
        """
        flat = _flat(tensors) if tensors[0].numel() >= MIN_ELEMENTS else None
        if flat is None or not self.run(flat, *others):
            return False
        torch.autograd.graph.increment_version([tensors[0], *tensors[2:]])
        return True


@functools.cache
def _lars_kernel(structure: _Structure) -> _Kernel:
    def lars_flat(tensors: list[Tensor], numbers: Tensor) -> None:
        values: Any = numbers.unbind()
        lr, momentum, weight_decay, trust_coefficient, eps, trust_clip = values
        s = LARSSettings(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            trust_clip=trust_clip if structure.clipped else None,
            nesterov=structure.first,
            lr_in_momentum=structure.second,
            adapt=structure.adapt,
            maximize=structure.maximize,
        )
        lars_(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None, s)

    return _Kernel(lars_flat, dynamic=True)


@functools.cache
def _lamb_kernel(structure: _Structure) -> _Kernel:
    def lamb_flat(tensors: list[Tensor], numbers: Tensor, c1: Tensor, c2: Tensor) -> None:
        values: Any = numbers.unbind()
        lr, beta1, beta2, eps, weight_decay, trust_clip = values
        s = LAMBSettings(
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            trust_clip=trust_clip if structure.clipped else None,
            bias_correction=structure.first,
            grad_averaging=structure.second,
            adapt=structure.adapt,
            maximize=structure.maximize,
        )
        lamb_(tensors[0], tensors[1], tensors[2], tensors[3], (c1, c2), s)

    return _Kernel(lamb_flat, dynamic=True)


@functools.lru_cache(maxsize=64)
def _lars_list_kernel(s: LARSSettings) -> _Kernel:
    def lars_lists(
        weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor] | None, lr: Tensor
    ) -> None:
        lars_list_(weights, grads, buffers, replace(s, lr=lr))

    return _Kernel(lars_lists, dynamic=False)


@functools.lru_cache(maxsize=64)
def _lamb_list_kernel(s: LAMBSettings) -> _Kernel:
    def lamb_lists(
        weights: list[Tensor],
        grads: list[Tensor],
        firsts: list[Tensor],
        seconds: list[Tensor],
        first: Tensor,
        second: Tensor,
        lr: Tensor,
    ) -> None:
        lamb_list_(weights, grads, firsts, seconds, (first, second), replace(s, lr=lr))

    return _Kernel(lamb_lists, dynamic=False)


def _numbers(weight: Tensor, lr: Number, *others: Number | None) -> Tensor:
    """Learning rate and further numbers as one tensor, so that changing them compiles nothing."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    is_tensor = isinstance(lr, Tensor)
    values = [0.0 if is_tensor else lr, *(0.0 if value is None else value for value in others)]
    numbers = torch.tensor(values, dtype=dtype)
    if is_tensor:
        numbers[0] = lr
    return numbers


def _flat(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Tensors of one dimension over the same memory, or None if the elements lie differently.

    ``.data`` makes them tensors of their own: torch.compile would compile a view anew for every
    shape of its base.
    """
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1).data for t in tensors]
    first = tensors[0]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(first.ndim)
    if layout is None or not all(t.is_contiguous(memory_format=layout) for t in tensors):
        return None
    return [t.as_strided((t.numel(),), (1,), t.storage_offset()).data for t in tensors]


def _bare(tensors: list[Tensor]) -> list[Tensor]:
    return [t.data for t in tensors]

"""LARS and LAMB on lists of tensors, by torch's multi-tensor operations.

The same results as :mod:`conadv.optim.reference` up to rounding, with fewer passes over the
memory. On the CPU the lists are cut into pieces that stay in the cache from one operation to the
next. Nothing here reads a value back from the device, so a CUDA graph can capture it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from conadv.optim.reference import (
    LAMBSettings,
    LARSSettings,
    Number,
    lamb_ratio,
    lars_ratio,
)

CACHED_ELEMENTS = 1 << 18
"""Elements of each tensor list that are worked on at a time on the CPU."""


def lars_list_(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | None,
    s: LARSSettings,
    norms: Tensor | None = None,
) -> None:
    """One LARS step of a list of tensors of one device and dtype, in place.

    Args:
        weights: w.
        grads: g; not changed.
        buffers: v, or None without momentum.
        s: settings of the group; of its numbers only ``lr`` may be a tensor.
        norms: |w| and |g| of shape (2, number of tensors), if the tensors are a rank's parts of
            larger ones.
    """
    for part in _pieces(weights):
        some = None if buffers is None else buffers[part]
        whole = None if norms is None else norms[:, part]
        _lars_(weights[part], grads[part], some, s, whole)


def lamb_list_(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> None:
    """One LAMB step of a list of tensors of one device and dtype, in place.

    Args:
        weights: w.
        grads: g; not changed.
        firsts: m.
        seconds: v.
        corrections: ``1 - beta ** step`` of both moments: a number for all tensors, or a tensor
            of one dimension with a value for each.
        s: settings of the group; of its numbers only ``lr`` may be a tensor.
    """
    for part in _pieces(weights):
        w, g, m, v = (tensors[part] for tensors in (weights, grads, firsts, seconds))
        here = (_part(corrections[0], part), _part(corrections[1], part))
        updates, scale = _lamb_updates(w, g, m, v, here, s)
        lamb_apply_list_(w, updates, scale, s)


def lamb_updates(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> tuple[list[Tensor], Number]:
    """The first half of :func:`lamb_list_`, which changes the moments.

    Returns:
        New tensors and a factor on them (a number, or a tensor of one dimension with a value for
        each): their products are the updates u.
    """
    updates: list[Tensor] = []
    for part in _pieces(weights):
        w, g, m, v = (tensors[part] for tensors in (weights, grads, firsts, seconds))
        here = (_part(corrections[0], part), _part(corrections[1], part))
        updates += _lamb_updates(w, g, m, v, here, s)[0]
    return updates, corrections[1] ** 0.5 / corrections[0]


def lamb_apply_list_(
    weights: list[Tensor],
    updates: list[Tensor],
    scale: Number,
    s: LAMBSettings,
    norms: Tensor | None = None,
) -> None:
    """The second half of :func:`lamb_list_`: w = w - lr * ratio * u.

    Args:
        weights: w.
        updates: u / scale.
        scale: the factor, as :func:`lamb_updates` returns it.
        s: settings of the group.
        norms: |w| and |u / scale| of shape (2, number of tensors), if the tensors are a rank's
            parts of larger ones.
    """
    rate = -s.lr * scale
    if s.adapt:
        both = (norms_of(weights), norms_of(updates)) if norms is None else (norms[0], norms[1])
        rate = lamb_ratio(both[0], both[1] * scale, s) * rate
    _add_scaled_(weights, updates, rate)


def norms_of(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each tensor, at least in float32, as one tensor of one dimension."""
    low = tensors[0].dtype in (torch.float16, torch.bfloat16)
    return torch.stack(_list(torch._foreach_norm(tensors, 2, dtype=torch.float32 if low else None)))


def _lars_(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | None,
    s: LARSSettings,
    norms: Tensor | None,
) -> None:
    # The sign of `maximize` goes into the factors, so g is neither copied nor changed.
    sign = -1.0 if s.maximize else 1.0
    inside = sign * s.lr if s.lr_in_momentum else sign
    outside = 1.0 if s.lr_in_momentum else s.lr
    if s.adapt:
        both = (norms_of(weights), norms_of(grads)) if norms is None else (norms[0], norms[1])
        inside = lars_ratio(*both, s) * inside
    directions = grads
    if s.weight_decay != 0:
        directions = _list(torch._foreach_add(grads, weights, alpha=sign * s.weight_decay))
    if buffers is not None:
        torch._foreach_mul_(buffers, s.momentum)
        _add_scaled_(buffers, directions, inside)
    if buffers is None or s.nesterov:
        _add_scaled_(weights, directions, inside * -outside)
    if buffers is not None:
        _add_scaled_(weights, buffers, -outside * s.momentum if s.nesterov else -outside)


def _lamb_updates(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: tuple[Number, Number],
    s: LAMBSettings,
) -> tuple[list[Tensor], Number]:
    if s.grad_averaging and not s.maximize:
        torch._foreach_lerp_(firsts, grads, 1.0 - s.beta1)  # one pass less
    else:
        new = 1.0 - s.beta1 if s.grad_averaging else 1.0
        torch._foreach_mul_(firsts, s.beta1)
        torch._foreach_add_(firsts, grads, alpha=-new if s.maximize else new)
    torch._foreach_mul_(seconds, s.beta2)
    torch._foreach_addcmul_(seconds, grads, grads, value=1.0 - s.beta2)
    # m / c1 / (sqrt(v / c2) + eps) = scale * m / (sqrt(v) + eps * sqrt(c2)), scale = sqrt(c2) / c1:
    # the corrections cost no pass of their own.
    root = corrections[1] ** 0.5
    scale = root / corrections[0]
    denominators = _list(torch._foreach_sqrt(seconds))
    _add_number_(denominators, s.eps * root)
    updates = _list(torch._foreach_div(firsts, denominators))
    del denominators
    if s.weight_decay != 0:
        _add_scaled_(updates, weights, s.weight_decay / scale)
    return updates, scale


def _add_scaled_(targets: list[Tensor], sources: list[Tensor], scale: Number) -> None:
    """``target += scale * source``; a ``scale`` of one dimension has a value for each tensor."""
    if isinstance(scale, Tensor):
        torch._foreach_addcmul_(targets, sources, _each(scale, len(targets)))
    else:
        torch._foreach_add_(targets, sources, alpha=scale)


def _add_number_(targets: list[Tensor], number: Number) -> None:
    """``target += number``, likewise."""
    if isinstance(number, Tensor):
        torch._foreach_add_(targets, _each(number, len(targets)))
    else:
        torch._foreach_add_(targets, number)


def _part(number: Number, part: slice) -> Number:
    return number[part] if isinstance(number, Tensor) and number.ndim else number


def _each(number: Tensor, count: int) -> list[Tensor]:
    return list(number.unbind()) if number.ndim else [number] * count


def _list(tensors: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """The multi-tensor operations return a list or a tuple, depending on the version of torch."""
    return list(tensors)


def _pieces(tensors: list[Tensor]) -> Iterator[slice]:
    """Runs of tensors to work on together: what fits the cache on the CPU, all elsewhere."""
    if not tensors:
        return
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(0, len(tensors))
        return
    start, elements = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and elements + tensor.numel() > CACHED_ELEMENTS:
            yield slice(start, index)
            start, elements = index, 0
        elements += tensor.numel()
    yield slice(start, len(tensors))

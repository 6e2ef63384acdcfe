"""Running statistics and other buffers that a forward pass must leave as they were."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv.branches.structure import modules_of


def forward_of(layer: nn.Module) -> tuple[str, str]:
    """Module and qualified name of the forward that `layer` runs."""
    forward = type(layer).forward
    return forward.__module__, getattr(forward, "__qualname__", "")


def writes_buffers(model: nn.Module) -> bool:
    """Whether a forward pass in training mode may write to buffers that have to be put back."""
    return any(
        m._buffers and m.training and not obeys_track_running_stats(m) for m in modules_of(model)
    )


_OBEDIENT = {
    ("torch.nn.modules.batchnorm", "_BatchNorm.forward"),
    ("torch.nn.modules.batchnorm", "SyncBatchNorm.forward"),
    ("timm.layers.norm_act", "BatchNormAct2d.forward"),
    ("timm.layers.norm_act", "SyncBatchNormAct.forward"),
}


def obeys_track_running_stats(layer: nn.Module) -> bool:
    """Whether `layer` is a batch norm known to leave its buffers alone when tracking is off."""
    return isinstance(layer, _BatchNorm) and forward_of(layer) in _OBEDIENT


def _is_inference(tensor: Tensor) -> bool:
    """Whether it must not be written to; not asked inside a graph, where some releases refuse."""
    return not torch.compiler.is_compiling() and tensor.is_inference()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Forward passes inside use batch statistics but leave every buffer as it was.

    Batch norm skips its update when `track_running_stats` is off, in training mode only, so
    layers in eval mode keep their running statistics. Whatever other layers write to their
    buffers (spectral norm, instance norm, layers of your own) is put back.
    """
    modules = modules_of(model)
    tracking = [
        m for m in modules if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    with unchanged_buffers(m for m in modules if m._buffers and not obeys_track_running_stats(m)):
        try:
            for norm in tracking:  # past nn.Module's own setter, which takes a microsecond each
                norm.__dict__["track_running_stats"] = False
            yield
        finally:
            for norm in tracking:
                norm.__dict__["track_running_stats"] = True


@contextmanager
def unchanged_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the modules' own buffers back at the end: the same tensors with the same values.

    Not by `_version`: batch norm's kernels write running statistics without counting it. And
    through `.data`, so that a graph that saved a buffer before is not told of a change.
    """
    saved: list[tuple[nn.Module, str, Tensor, Tensor | None]] = [
        (module, name, buffer, None if _is_inference(buffer) else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not isinstance(buffer, nn.parameter.UninitializedBuffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                if value is not None:
                    buffer.data.copy_(value)
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer

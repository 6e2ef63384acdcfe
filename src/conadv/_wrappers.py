"""Looking through the wrappers around a model."""

from __future__ import annotations

import torch
from torch import nn


def unwrap(model: nn.Module) -> tuple[nn.Module, bool]:
    """The bare module under DDP and torch.compile wrappers, and whether one of them compiles."""
    compiled = False
    while True:
        if isinstance(model, torch._dynamo.OptimizedModule):
            compiled = True
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            # nn.Module.compile() compiles in place and leaves the class as it is.
            return model, compiled or getattr(model, "_compiled_call_impl", None) is not None

"""Looking through the wrappers around a model, and copying what is inside."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def unwrap(model: nn.Module) -> tuple[nn.Module, Callable[[Any], Any] | None]:
    """The bare module under DDP and torch.compile wrappers, and how to compile alike.

    Returns:
        The bare module, and a function that compiles another callable with the same backend and
        options, or None where nothing is compiled.
    """
    compiler: Callable[[Any], Any] | None = None
    while True:
        if is_optimized(model):
            wrapper: Any = model
            compiler, model = wrapper.dynamo_ctx, wrapper._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif type(model).__name__ == "_FabricModule":
            wrapper = model
            model = wrapper._forward_module
        else:
            # nn.Module.compile() compiles in place and leaves the class as it is.
            call = getattr(model, "_compiled_call_impl", None)
            if compiler is None and call is not None:
                compiler = _compiler_of(call)
            return model, compiler


def is_optimized(model: nn.Module) -> bool:
    """Whether `model` is what torch.compile returns, without importing the compiler to ask."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def _compiler_of(compiled: Any) -> Callable[[Any], Any]:
    """The context that compiled this function; torch's default where a release hides it."""
    names = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
    if "self" in names:
        context = compiled.__closure__[names.index("self")].cell_contents
        if hasattr(context, "get_compiler_config") or type(context).__name__ == "OptimizeContext":
            return context  # type: ignore[no-any-return]
    return torch.compile


def deep_copy(module: nn.Module) -> nn.Module:
    """`copy.deepcopy` that shares process groups (SyncBatchNorm holds one; none can be copied)."""
    groups = [vars(m).get("process_group") for m in module.modules()]
    return copy.deepcopy(module, {id(group): group for group in groups if group is not None})

"""Looking through the wrappers around a model, and copying what is inside."""

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def unwrap(model: nn.Module) -> tuple[nn.Module, Callable[[Any], Any] | None]:
    """The bare module under its wrappers (DDP, Fabric, torch.compile), and how to compile alike.

    Returns:
        The bare module, and a function that compiles another callable with the same backend and
        options, or None where nothing is compiled.
    """
    compiler: Callable[[Any], Any] | None = None
    while True:
        if is_optimized(model):
            wrapper: Any = model
            compiler, model = wrapper.dynamo_ctx, wrapper._orig_mod
        elif (inner := inside(model)) is not None:
            model = inner
        else:
            # nn.Module.compile() compiles in place and leaves the class as it is.
            call = getattr(model, "_compiled_call_impl", None)
            if compiler is None and call is not None:
                compiler = _compiler_of(call)
            return model, compiler


def inside(model: nn.Module) -> nn.Module | None:
    """The module that a wrapper hands its arguments on to; None for what is no wrapper.

    Beside torch's own: whatever keeps a ``_forward_module`` (Fabric), and whatever has one child,
    ``module``, no tensor of its own and a forward that names none of its arguments (DeepSpeed,
    Megatron, apex). A network that calls something of its own ``module`` names them.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return model.module  # type: ignore[no-any-return]
    inner = model._modules.get("_forward_module")
    if inner is not None:
        return inner
    if list(model._modules) != ["module"] or model._parameters or model._buffers:
        return None
    _, *arguments = inspect.signature(type(model).forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = not arguments or any(argument.kind not in variadic for argument in arguments)
    return None if named else model._modules["module"]


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

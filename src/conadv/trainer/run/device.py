"""Which device and which floating-point precision to train in, and why."""

import ctypes
import ctypes.util
import os
import sys
from dataclasses import dataclass

import torch

from conadv.errors import RecipeError
from conadv.trainer.run.environment import proc_line

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Processor features with bf16 arithmetic: two of x86, one of ARM."""


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of forward passes on a device, and why it is that one."""

    name: str
    """``bf16``, ``fp16`` or ``fp32``."""
    reason: str
    """Why this one, in a sentence."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that autocast computes in; None computes in float32 without autocast."""
        return _DTYPES[self.name]


def choose_precision(asked: str, device: torch.device | str) -> PrecisionChoice:
    """Choose the precision that a recipe asks for.

    Args:
        asked: ``"bf16"``, ``"fp16"``, ``"fp32"``, or ``"auto"``: bf16 where the device computes in
            it, otherwise fp32. fp16 is never chosen by itself: the input gradient of one image in
            a large batch underflows in it, and sign(0) = 0 switches the attack off.
        device: where the passes run.

    Raises:
        RecipeError: any other name.
    """
    kind = torch.device(device).type
    if asked != "auto" and asked not in _DTYPES:
        raise RecipeError(f"precision {asked!r}: allowed are auto, {', '.join(_DTYPES)}.")
    has_bf16, found = _computes_bf16(torch.device(device))
    if asked == "auto":
        if has_bf16:
            return PrecisionChoice("bf16", f"{found}, so auto takes bf16.")
        hint = " hardware.precision=fp16 may be faster there." if kind == "cuda" else ""
        return PrecisionChoice("fp32", f"{found}, so auto takes fp32.{hint}")
    if asked == "bf16" and not has_bf16:
        return PrecisionChoice("bf16", f"As asked, although {found}: it is emulated and slow.")
    return PrecisionChoice(asked, "As asked.")


def autocast_dtype(asked: str, device: torch.device | str) -> torch.dtype | None:
    """The dtype of `choose_precision`: None computes in float32."""
    return choose_precision(asked, device).dtype


def resolve_device(asked: str) -> torch.device:
    """The device a recipe asks for; ``"auto"`` is CUDA, then Apple's GPU, then the CPU.

    Raises:
        RecipeError: it is not on this machine.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise RecipeError(
            f"hardware.device={asked!r}: allowed are auto, cpu, mps, cuda and cuda:N."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "sees no GPU" if torch.version.cuda or torch.version.hip else "is built for CPUs"
        raise RecipeError(f"hardware.device={asked}: this torch {built}. Use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"hardware.device={asked}: there are {torch.cuda.device_count()} GPUs, numbered from 0."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("hardware.device=mps: torch sees no Apple GPU. Use auto or cpu.")
    return device


def _computes_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether a device has bf16 arithmetic of its own, and that in words."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return has, f"{name} {'computes in bf16' if has else 'has no bf16 arithmetic'}"
    if device.type == "cpu":
        flags = sorted(cpu_features() & _CPU_FLAGS)
        if flags:
            return True, f"the processor computes in bf16 ({', '.join(flags)})"
        return False, "the processor has no bf16 arithmetic"
    return False, f"bf16 on {device.type} is not relied upon"


def cpu_features() -> set[str]:
    """Names of the processor's features, as far as torch or the system tells them."""
    features: set[str] = set()
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        features |= {name for name, has in capabilities().items() if has is True}
    return features | set((proc_line("cpuinfo", "flags", "Features") or "").split())


# From glibc's malloc.h. The largest mmap threshold that glibc accepts is 32 MiB.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks; returns whether it did.

    Process-wide and harmless: memory that the process has used once stays with it. Does nothing
    on systems without glibc, where another allocator is preloaded, or where the user has set
    malloc's own environment variables.
    """
    if not sys.platform.startswith("linux") or os.environ.get("LD_PRELOAD"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_M_TOP_PAD, 64 * _MIB)
    )

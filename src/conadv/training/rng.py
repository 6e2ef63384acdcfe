"""The global random streams of torch, kept and put back (dropout, stochastic depth)."""

from typing import Any

import torch


def rng_state() -> dict[str, Any]:
    """The streams of the CPU and of every CUDA device, as tensors."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the streams; those of devices that are not there are left out."""
    torch.set_rng_state(state["cpu"])
    for index, stream in enumerate(state["cuda"]):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(stream, index)

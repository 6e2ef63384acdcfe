"""What rank 0 hands to all, where the process group knows GPUs alone: recorded without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from conadv.trainer.distributed import World

STATE = {
    "weights": torch.arange(12.0).view(3, 4).t(),
    "half": torch.tensor(1.5, dtype=torch.bfloat16),
    "list": [torch.tensor([True, False]), None, torch.empty(0, 3), "text"],
}


class PretendedGPU(TorchFunctionMode):
    """Tensors that are asked to be on a GPU stay on the CPU, and are known by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, Tensor] = {}
        self.log: list[str] = []

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.memory

    def _on(self, tensor: Tensor) -> Tensor:
        self.memory[tensor.untyped_storage()._cdata] = tensor  # so that it is not used again
        return tensor

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") == "cuda":
            self.log.append("room")
            return self._on(function(*args, **{**kwargs, "device": "cpu"}))
        if function is Tensor.to and args[1:] == ("cuda",):
            self.log.append("up")
            return self._on(args[0].clone())
        if function is Tensor.to and args[1:] == ("cpu",) and self.holds(args[0]):
            self.log.append("down")
            return args[0].clone()
        made = function(*args, **kwargs)
        there = args and isinstance(args[0], Tensor) and self.holds(args[0])
        return self._on(made) if there and isinstance(made, Tensor) else made


def spread(
    rank: int, monkeypatch: pytest.MonkeyPatch, sent: list[Any], value: Any
) -> tuple[Any, list[str]]:
    """What a rank gets out of `World.spread`; rank 0 leaves what it has sent."""
    gpu, arriving = PretendedGPU(), iter(list(sent))

    def broadcast(tensor: Tensor, src: int) -> None:
        assert src == 0 and tensor.dtype == torch.uint8 and tensor.is_contiguous()
        assert gpu.holds(tensor), "a tensor on the CPU, which NCCL refuses"
        gpu.log.append("sent")
        if rank == 0:
            sent.append(tensor.clone())
        else:
            tensor.copy_(next(arriving))

    def objects(box: list[Any], src: int) -> None:
        gpu.log.append("outline")
        if rank == 0:
            sent.append(box[0])
        else:
            box[0] = next(arriving)

    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(dist, "broadcast_object_list", objects)
    with gpu:
        found = World(rank, 2).spread(value)
    for tensor in (found["weights"], found["half"], found["list"][0], found["list"][2]):
        assert not gpu.holds(tensor), "a checkpoint is read onto the CPU"
    assert rank == 0 or next(arriving, None) is None, "fewer messages are read than sent"
    return found, gpu.log


def test_what_is_spread_travels_between_gpus_and_ends_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same order on both sides, each tensor by itself, and none that is empty."""
    sent: list[Any] = []
    _, main = spread(0, monkeypatch, sent, STATE)
    found, other = spread(1, monkeypatch, sent, None)
    assert main == ["outline", *["up", "sent", "down"] * 3, "up", "down"]
    assert other == ["outline", *["room", "sent", "down"] * 3, "room", "down"]
    assert torch.equal(found["weights"], STATE["weights"])
    assert found["half"].dtype == torch.bfloat16 and found["half"] == 1.5
    assert found["list"][0].tolist() == [True, False]
    assert found["list"][2].shape == (0, 3) and found["list"][1::2] == [None, "text"]

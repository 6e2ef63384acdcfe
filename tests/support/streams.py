"""Fake CUDA streams, on which the order of things can be seen without a GPU."""

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from conadv.adversary.round import Streams

BESIDE = [
    "side waits for main",
    "forward on side",
    "event of side",
    "forward on main",
    "main waits for event of side",
    "step",
]
"""A step with work beside its training pass: after the last step, and before it is used."""


class Recorder:
    """Fake CUDA streams and events that write down who waited for whom, and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module, streams: Streams) -> None:
        self.log: list[str] = []
        self.main, self.side = FakeStream("main", self.log), FakeStream("side", self.log)
        self.current = self.main
        self.caches: list[bool] = []
        monkeypatch.setattr(torch.cuda, "current_stream", self._current)
        monkeypatch.setattr(torch.cuda, "stream", self._enter)
        streams.side = lambda device: self.side
        streams._side = self.side
        model.register_forward_pre_hook(self._forward)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)

    def _current(self, device: Any = None) -> Any:
        assert device is not None, "the images' device need not be the current one"
        return self.current

    @contextlib.contextmanager
    def _enter(self, stream: Any):
        self.current, before = stream, self.current
        yield
        self.current = before

    def _forward(self, *_: Any) -> None:
        self.log.append(f"forward on {self.current.name}")
        if self.current is self.side:
            self.caches.append(torch.is_autocast_cache_enabled())


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Any) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        self.log.append(f"event of {self.name}")
        return f"event of {self.name}"

"""What an attack beside the training pass must wait for, recorded without a GPU."""

from typing import Any

import pytest
import torch
from torch import nn

import conadv
from conadv.attack.forward import seed_from
from support.loops import ATTACK, EPSILON, MEAN, STD, batches, cross_entropy, network, sgd
from support.streams import BESIDE, Recorder


def two_rounds(monkeypatch, model: nn.Module, attack: conadv.Attack = ATTACK) -> Recorder:
    adversary = conadv.Adversary(model, attack, "lookahead", forward="joint")
    recorder, optimizer = Recorder(monkeypatch, model, adversary._streams), sgd(model)
    for images, labels in adversary.batches(batches(2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adversary.loss(images, labels, cross_entropy)
        loss.backward()
        adversary.collect()
        recorder.log.append("step")
        optimizer.step()
    return recorder


def test_the_attack_runs_between_the_last_step_and_its_use(monkeypatch) -> None:
    recorder = two_rounds(monkeypatch, network())
    assert recorder.log[:6] == BESIDE


def test_weights_cast_beside_the_training_pass_are_kept_by_nobody(monkeypatch) -> None:
    """Autocast's cache would hand them to the training pass, which does not wait for them."""
    recorder = two_rounds(monkeypatch, network())
    assert recorder.caches == [False]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x


@pytest.mark.parametrize("reason", ["eval", "buffers"])
def test_an_attack_that_shares_buffers_with_the_training_pass_runs_after_it(
    monkeypatch, reason: str
) -> None:
    model = network()
    if reason == "buffers":
        model.append(Counting())
    attack = conadv.Attack(EPSILON, mean=MEAN, std=STD, mode="eval" if reason == "eval" else None)
    recorder = two_rounds(monkeypatch, model, attack)
    assert not any("side" in line for line in recorder.log)


def test_a_seed_for_dropout_is_not_fetched_from_the_device(monkeypatch) -> None:
    class OnTheDevice:
        device = torch.device("cuda", 1)
        state = torch.tensor([7, 0], dtype=torch.int64)

        def get_state(self) -> torch.Tensor:
            return self.state.view(torch.uint8)

    generator = OnTheDevice()

    def draw(shape: Any, generator: Any, device: Any) -> None:
        generator.state = generator.state + torch.tensor([0, 4])

    monkeypatch.setattr(torch, "rand", draw)
    monkeypatch.setattr(torch, "randint", None)
    first, second = seed_from(generator), seed_from(generator)
    assert first != second
    generator.state = torch.tensor([7, 0], dtype=torch.int64)
    assert seed_from(generator) == first

"""Perturbed embeddings inside other trainers equal the plain loop, bit for bit."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import conadv
from support.text import ATTACK, batches, cross_entropy, pending, text, train
from support.trainers import assert_same

DATA = batches((4, 7, 5, 4))
PRECISION = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])


def outcome(model: torch.nn.Module, adversary: conadv.Adversary) -> dict[str, Any]:
    return {"weights": model.state_dict(), "pending": pending(adversary)}


def by_hand(dtype: torch.dtype | None) -> dict[str, Any]:
    model = text()
    return outcome(model, train(model, DATA, "recycled", dtype=dtype))


@PRECISION
def test_accelerate(dtype: torch.dtype | None) -> None:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from conadv.integrations.accelerate import prepare

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="no" if dtype is None else "bf16")
    model = text()
    loader = DataLoader(DATA, batch_size=None)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped, optimizer, loader, adversary = prepare(accelerator, model, sgd, loader, ATTACK)
    for inputs, labels in adversary.batches(loader):
        with accelerator.accumulate(wrapped):
            accelerator.backward(adversary.loss(inputs, labels, cross_entropy))
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(outcome(model, adversary), by_hand(dtype))


@PRECISION
def test_fabric(dtype: torch.dtype | None) -> None:
    pytest.importorskip("lightning")
    from lightning.fabric import Fabric

    from conadv.integrations.lightning import setup

    precision = "32-true" if dtype is None else "bf16-mixed"
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = text()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    _, optimizer, adversary = setup(fabric, model, sgd, ATTACK)
    for inputs, labels in adversary.batches(DATA):
        fabric.backward(adversary.loss(inputs, labels, cross_entropy))
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(outcome(model, adversary), by_hand(dtype))


@PRECISION
def test_lightnings_trainer(dtype: torch.dtype | None) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule

    from support import lightning_loops

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = text()
            self.adversary = conadv.Adversary(self.network, ATTACK)

        def training_step(self, batch: Any) -> torch.Tensor:
            return self.adversary.loss(*batch, cross_entropy)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.network.parameters(), lr=0.1)

    module = Module()
    lightning_loops.fit(module, DATA, bf16=dtype is not None)
    assert_same(outcome(module.network, module.adversary), by_hand(dtype))

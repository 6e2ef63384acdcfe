"""Training with Accelerate, in this process and on two ranks."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import conadv
from conadv.integrations.accelerate import prepare
from support.loops import ATTACK, cross_entropy, network, sgd
from support.trainers import SIZE, act_as_rank, data, outcome, plain_loop, shared_folder

WORLD = 2


def loader(micro_batches: list[tuple[Tensor, Tensor]]) -> DataLoader[Any]:
    images, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return DataLoader(TensorDataset(images, labels), batch_size=SIZE)


def begin(
    micro_batches: list[tuple[Tensor, Tensor]],
    schedule: str = "recycled",
    bf16: bool = False,
    accumulation: int = 1,
) -> tuple[Any, ...]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    precision = "bf16" if bf16 else "no"
    accelerator = Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulation
    )
    model = network()
    return accelerator, *prepare(
        accelerator,
        model,
        sgd(model),
        loader(micro_batches),
        ATTACK,
        schedule,
        forward="joint",
    )


def go_on(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    batches: Any,
    adversary: conadv.Adversary,
    clip: float | None = None,
) -> dict[str, Any]:
    for images, labels in adversary.batches(batches):
        with accelerator.accumulate(model):
            accelerator.backward(adversary.loss(images, labels, cross_entropy))
            adversary.collect()
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return outcome(accelerator.unwrap_model(model), adversary)


def train(clip: float | None = None, ranks: int = 1, **options: Any) -> dict[str, Any]:
    return go_on(*begin(data(options.get("accumulation", 1), ranks), **options), clip)


def resume(folder: Path, ranks: int = 1) -> dict[str, Any]:
    """Half of the steps, a checkpoint, the other half in objects of their own."""
    micro_batches = data(ranks=ranks)
    half = len(micro_batches) // 2
    run = begin(micro_batches[:half])
    go_on(*run)
    run[0].save_state(str(folder))
    run = begin(micro_batches[half:])
    run[0].load_state(str(folder))
    return go_on(*run)


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `support.gloo.run_cases`: (by Accelerate, by hand) on each rank."""

    def both(rank: int, **options: Any) -> dict[str, Any]:
        act_as_rank(rank, world)
        by_hand = data(options.get("accumulation", 1), world)[rank::world]
        return {
            "trainer": train(ranks=world, **options),
            "plain": outcome(*plain_loop(by_hand, ddp=True, **options)),
        }

    def resumed(rank: int) -> dict[str, Any]:
        act_as_rank(rank, world)
        return {
            "trainer": resume(shared_folder(), world),
            "plain": outcome(*plain_loop(data(ranks=world)[rank::world], ddp=True)),
        }

    return {
        ("fp32",): both,
        ("accumulation",): lambda rank: both(rank, accumulation=2),
        ("lookahead",): lambda rank: both(rank, schedule="lookahead"),
        ("resume",): resumed,
    }

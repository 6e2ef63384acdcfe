"""Training with Lightning's Trainer and with Fabric, in this process and on two ranks."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

import conadv
from conadv.integrations.lightning import ConAdv, setup
from support.loops import ATTACK, cross_entropy, network, sgd
from support.trainers import act_as_rank, data, outcome, plain_loop, shared_folder

WORLD = 2


class Module(LightningModule):
    def __init__(self, schedule: str = "recycled") -> None:
        super().__init__()
        self.network = network()
        self.adversary = conadv.Adversary(self.network, ATTACK, schedule, forward="joint")

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.adversary.loss(*batch, cross_entropy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.network)


class OwnLoss(Module):
    """Knows nothing of copies; under manual optimisation it accumulates where asked to."""

    def __init__(self, schedule: str = "recycled", accumulation: int | None = None) -> None:
        super().__init__(schedule)
        self.automatic_optimization = accumulation is None
        self.accumulation = accumulation

    def training_step(self, batch: Any, number: int) -> Tensor | None:
        images, labels = batch.values() if isinstance(batch, dict) else batch
        loss = cross_entropy(self.network(images), labels)
        if self.accumulation is None:
            return loss
        self.manual_backward(loss / self.accumulation)
        if (number + 1) % self.accumulation == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return None


class ByHand(Module):
    """Manual optimisation, with accumulation where asked for."""

    def __init__(self, accumulation: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulation = accumulation

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        optimizer = self.optimizers()
        fraction = 1 / self.accumulation
        self.manual_backward(self.adversary.loss(*batch, cross_entropy, fraction=fraction))
        if (number + 1) % self.accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def fit(
    module: Module,
    micro_batches: list[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    accumulation: int = 1,
    clip: float | None = None,
    epochs: int = 1,
    ranks: int = 1,
    resume: Path | None = None,
    mix: bool | str = False,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
        accumulate_grad_batches=accumulation,
        gradient_clip_val=clip,
        max_epochs=epochs,
        callbacks=[ConAdv(mix=mix, criterion=cross_entropy)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():  # of workers, sizes and the like
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", module="torch.*")
        trainer.fit(module, DataLoader(micro_batches, batch_size=None), ckpt_path=resume)
    return trainer


def train(micro_batches: list[tuple[Tensor, Tensor]], **options: Any) -> dict[str, Any]:
    module = Module(options.pop("schedule", "recycled"))
    fit(module, micro_batches, **options)
    return outcome(module.network, module.adversary)


def train_mixed(
    micro_batches: list[Any], accumulate_by_hand: int | None = None, **options: Any
) -> dict[str, Any]:
    module = OwnLoss(options.pop("schedule", "recycled"), accumulate_by_hand)
    fit(module, micro_batches, **{"mix": True, **options})
    return outcome(module.network, module.adversary)


def train_by_hand(micro_batches: list[tuple[Tensor, Tensor]], **options: Any) -> dict[str, Any]:
    module = ByHand(options.pop("accumulation", 1))
    fit(module, micro_batches, **options)
    return outcome(module.network, module.adversary)


def resume(
    micro_batches: list[Any], folder: Path, make: type[Module] = Module, **options: Any
) -> dict[str, Any]:
    """One epoch, a checkpoint, a second epoch in objects of their own."""
    trainer = fit(make(), micro_batches, **options)
    trainer.save_checkpoint(folder / "half.ckpt")
    module = make()
    fit(module, micro_batches, epochs=2, resume=folder / "half.ckpt", **options)
    return outcome(module.network, module.adversary)


class FabricRun:
    """A loop of one's own with Fabric."""

    def __init__(self, schedule: str = "recycled", bf16: bool = False, ranks: int = 1) -> None:
        self.fabric = Fabric(
            accelerator="cpu",
            devices=ranks,
            strategy=FabricDDP(process_group_backend="gloo") if ranks > 1 else "auto",
            precision="bf16-mixed" if bf16 else "32-true",
        )
        self.fabric.launch()
        model = network()
        self.model, self.optimizer, self.adversary = setup(
            self.fabric, model, sgd(model), ATTACK, schedule, forward="joint"
        )

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "adversary": self.adversary}

    def train(
        self,
        micro_batches: list[tuple[Tensor, Tensor]],
        accumulation: int = 1,
        clip: float | None = None,
    ) -> dict[str, Any]:
        for number, (images, labels) in enumerate(self.adversary.batches(micro_batches), 1):
            last = number % accumulation == 0
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                loss = self.adversary.loss(images, labels, cross_entropy, fraction=1 / accumulation)
                self.fabric.backward(loss)
            self.adversary.collect()
            if last:
                if clip is not None:
                    self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return outcome(self.model.module, self.adversary)


def fabric_train(
    micro_batches: list[tuple[Tensor, Tensor]],
    schedule: str = "recycled",
    bf16: bool = False,
    ranks: int = 1,
    **options: Any,
) -> dict[str, Any]:
    return FabricRun(schedule, bf16, ranks).train(micro_batches, **options)


def fabric_resume(micro_batches: list[Any], folder: Path, ranks: int = 1) -> dict[str, Any]:
    half = len(micro_batches) // 2
    run = FabricRun(ranks=ranks)
    run.train(micro_batches[:half])
    run.fabric.save(folder / "half.ckpt", run.state)
    run = FabricRun(ranks=ranks)
    run.fabric.load(folder / "half.ckpt", run.state)
    return run.train(micro_batches[half:])


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `support.gloo.run_cases`: (by the trainer, by hand) on each rank."""

    def case(rank: int, function: Any, epochs: int = 1, **options: Any) -> dict[str, Any]:
        act_as_rank(rank, world)
        mine = data(options.get("accumulation", 1), world)[rank::world]
        arguments = {"folder": shared_folder()} if function in (resume, fabric_resume) else options
        return {
            "trainer": function(mine, ranks=world, **arguments),
            "plain": outcome(*plain_loop(mine * epochs, ddp=True, **options)),
        }

    return {
        ("trainer",): lambda rank: case(rank, train),
        ("trainer, accumulation",): lambda rank: case(rank, train, accumulation=2),
        ("trainer, resume",): lambda rank: case(rank, resume, epochs=2),
        ("mixed",): lambda rank: case(rank, train_mixed),
        ("mixed, accumulation",): lambda rank: case(rank, train_mixed, accumulation=2),
        ("mixed, bf16",): lambda rank: case(rank, train_mixed, bf16=True),
        ("fabric",): lambda rank: case(rank, fabric_train),
        ("fabric, bf16",): lambda rank: case(rank, fabric_train, bf16=True),
        ("fabric, accumulation",): lambda rank: case(rank, fabric_train, accumulation=2),
        ("fabric, lookahead",): lambda rank: case(rank, fabric_train, schedule="lookahead"),
        ("fabric, resume",): lambda rank: case(rank, fabric_resume),
    }

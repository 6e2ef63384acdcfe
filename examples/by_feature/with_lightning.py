"""Lightning's Trainer owns the loop: the module holds the adversary, a callback collects.

python examples/by_feature/with_lightning.py
"""

import torch
from base import ATTACK, batches, criterion, network, report
from lightning.pytorch import LightningModule, Trainer  # +
from torch.utils.data import DataLoader  # +

import conadv
from conadv.integrations.lightning import ConAdv  # +


class Classifier(LightningModule):  # +
    def __init__(self) -> None:
        super().__init__()
        self.model = conadv.split_norms(network())
        self.adversary = conadv.Adversary(self.model, ATTACK)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return self.adversary.loss(images, labels, criterion)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    torch.manual_seed(0)
    module = Classifier()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[ConAdv()], **quiet)  # +
    trainer.fit(module, DataLoader(batches(), batch_size=None))  # +
    report(module.adversary)


if __name__ == "__main__":
    main()

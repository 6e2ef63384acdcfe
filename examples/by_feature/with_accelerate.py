"""Accelerate drives the devices; conadv prepares one thing more.

python examples/by_feature/with_accelerate.py
"""

import torch
from accelerate import Accelerator  # +
from base import ATTACK, batches, criterion, network, report
from torch.utils.data import DataLoader  # +

import conadv
from conadv.integrations.accelerate import prepare  # +


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    accelerator = Accelerator(cpu=True)  # + without cpu=True on GPUs
    loader = DataLoader(batches(), batch_size=None)  # +
    prepared = prepare(accelerator, model, optimizer, loader, ATTACK)  # +
    model, optimizer, loader, adversary = prepared  # +
    for images, labels in loader:  # +
        loss = adversary.loss(images, labels, criterion)
        accelerator.backward(loss)  # +
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)


if __name__ == "__main__":
    main()

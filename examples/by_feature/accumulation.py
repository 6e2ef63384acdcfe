"""Micro-batches: each gets its share of the step's images.

python examples/by_feature/accumulation.py
"""

import torch
from base import ATTACK, batches, criterion, network, report

import conadv


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    adversary = conadv.Adversary(model, ATTACK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        for x, y in zip(images.split(12), labels.split(12), strict=True):  # + 12, 12 and 8 images
            fraction = len(x) / len(images)  # +
            loss = adversary.loss(x, y, criterion, fraction=fraction)  # +
            loss.backward()
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)


if __name__ == "__main__":
    main()

"""Copies within a Euclidean ball.

python examples/by_feature/l2.py
"""

import torch
from base import MEAN, STD, batches, criterion, network, report

import conadv


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    attack = conadv.Attack(epsilon=0.5, mean=MEAN, std=STD, norm="l2")  # +
    adversary = conadv.Adversary(model, attack)  # +
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        loss = adversary.loss(images, labels, criterion)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)


if __name__ == "__main__":
    main()

"""A three-step attack as a pipeline over three rounds, still without an attack pass.

python examples/by_feature/refine.py
"""

import torch
from base import ATTACK, batches, criterion, network, report

import conadv


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    adversary = conadv.Adversary(model, ATTACK, conadv.Recycled(refine=3))  # +
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

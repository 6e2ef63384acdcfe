"""Another view of the images, through a normalisation of its own.

python examples/by_feature/three_branches.py
"""

import torch
from base import ATTACK, batches, criterion, network, report

import conadv


def main() -> None:
    torch.manual_seed(0)
    branches = ("clean", "flipped", "adversarial")  # +
    model = conadv.split_norms(network(), branches)  # +
    adversary = conadv.Adversary(model, ATTACK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        flipped = {"flipped": (images.flip(-1, -2), labels)}  # +
        loss = adversary.loss(images, labels, criterion, views=flipped)  # +
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)


if __name__ == "__main__":
    main()

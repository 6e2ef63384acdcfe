"""The ordinary network, without branches: exported, and run again.

python examples/by_feature/export.py
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
        loss = adversary.loss(images, labels, criterion)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)
    images = batches(1)[0][0]  # +
    plain = conadv.plain(model).eval()  # +
    program = torch.export.export(plain, (images,))  # +
    torch.testing.assert_close(program.module()(images), model.eval()(images))  # +
    print(f"exported {len(list(program.graph.nodes))} operations")  # +


if __name__ == "__main__":
    main()

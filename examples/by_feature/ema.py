"""An exponential moving average of the weights, of every branch.

python examples/by_feature/ema.py
"""

import torch
from base import ATTACK, batches, criterion, network, report
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # +

import conadv


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    adversary = conadv.Adversary(model, ATTACK)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # +
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        loss = adversary.loss(images, labels, criterion)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)  # +
    report(adversary)
    images, labels = batches(1)[0]  # +
    correct = (ema.module.eval()(images).argmax(1) == labels).float().mean()  # +
    print(f"accuracy of the average {correct:.0%}")  # +


if __name__ == "__main__":
    main()

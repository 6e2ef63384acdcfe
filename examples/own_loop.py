"""A complete training loop with conadv, from images to test accuracy, in one file.

    python examples/own_loop.py --schedule recycled --batch 1000

Lines that conadv adds to an ordinary loop are marked with "+".
"""

import argparse

import torch
from torch import nn

import conadv
from conadv.optim import LARS, param_groups, warmup_poly
from conadv.trainer.data import load_dataset
from conadv.trainer.data.resident import standardise


def network(channels: int, classes: int) -> nn.Module:
    """A few convolutions with batch norm: enough for small images."""
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--schedule", default="recycled", help="vanilla, sequential, lookahead, recycled or noise"
    )
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=4.0, help="peak learning rate of LARS")
    parser.add_argument("--smoke", action="store_true", help="three steps, to see that it runs")
    options = parser.parse_args()
    torch.manual_seed(0)

    data = load_dataset("fashion-mnist-subset")
    images = standardise(torch.as_tensor(data.train_images), data.mean, data.std)
    labels = torch.as_tensor(data.train_labels)
    test_images = standardise(torch.as_tensor(data.test_images), data.mean, data.std)
    test_labels = torch.as_tensor(data.test_labels)
    if options.smoke:
        images, labels, options.batch, options.epochs = images[:96], labels[:96], 32, 1

    model = network(images.shape[1], len(data.classes))
    model = conadv.split_norms(model)  # +
    attack = conadv.Attack(epsilon=4 / 255, mean=data.mean, std=data.std)  # +
    adversary = conadv.Adversary(model, attack, options.schedule)  # +
    optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=options.lr, momentum=0.9)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels),
        options.batch,
        shuffle=True,
        drop_last=True,
    )
    total = options.epochs * len(loader)
    step = 0
    for epoch in range(options.epochs):
        model.train()
        for batch, targets in adversary.batches(loader):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * warmup_poly(step, total, total // 5)
            loss = adversary.loss(batch, targets, criterion)
            loss.backward()
            adversary.collect()  # +
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        model.eval()
        with torch.no_grad():
            correct = (model(test_images).argmax(1) == test_labels).float().mean()
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {correct:.1%}, "
            f"compute {adversary.compute / adversary.images:.2f} per image"
        )

    print("Saving fashion.pt: the ordinary network, without branches")
    torch.save(conadv.plain(model).state_dict(), "fashion.pt")


if __name__ == "__main__":
    main()

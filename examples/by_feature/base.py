"""The base of the scripts beside this one: a loop with conadv, and nothing else.

    python examples/by_feature/base.py

Each other script is this one with exactly one feature more; its lines are marked "# +".
"""

import torch
from torch import nn

import conadv

MEAN, STD = (0.5,), (0.25,)
ATTACK = conadv.Attack(epsilon=4 / 255, mean=MEAN, std=STD)
criterion = nn.CrossEntropyLoss()


def network(classes: int = 4) -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def batches(count: int = 12, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Stripes in one of four directions, under noise."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    made = []
    for _ in range(count):
        labels = torch.randint(4, (size,))
        angle = (labels * torch.pi / 4).view(-1, 1, 1)
        waves = torch.sin(x * angle.cos() + y * angle.sin() + torch.rand(size, 1, 1) * 6.3)
        pixels = (0.5 + 0.2 * waves + 0.1 * torch.randn(size, 16, 16)).clamp(0, 1)
        made.append((((pixels - MEAN[0]) / STD[0]).unsqueeze(1), labels))
    return made


def report(adversary: conadv.Adversary) -> None:
    """The last step's losses of images and of copies."""
    last = adversary.diagnostics
    assert last.clean_loss is not None and last.adversarial_loss is not None
    print(f"clean {last.clean_loss:.3f}, adversarial {last.adversarial_loss:.3f}")


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


if __name__ == "__main__":
    main()

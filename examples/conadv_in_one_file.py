"""Concurrent adversarial learning (ConAdv) in one file of plain torch, to be read from the top.

    python examples/conadv_in_one_file.py --batch 250 --epochs 10

Two sets of normalisation layers, adversarial copies that come out of
the backward pass of the step before, LARS, and its learning-rate schedule. The library does the
same (a test compares the losses) and adds devices, precisions, checkpoints and other schedules.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = 0.5, 0.25  # the images were standardised with these; pixels lie in [0, 1]


# -- 1. Clean images and adversarial copies have different statistics: a batch norm for each


class SplitBatchNorm(nn.Module):
    branch = "clean"  # of the images in flight; clean for evaluation too

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.clean = norm
        self.adversarial = nn.BatchNorm2d(norm.num_features)
        self.adversarial.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.branch)(x)


def split_norms(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SplitBatchNorm(child))
        else:
            split_norms(child)
    return module


def forward(model: nn.Module, images: Tensor, branch: str) -> Tensor:
    SplitBatchNorm.branch = branch
    try:
        return model(images)
    finally:
        SplitBatchNorm.branch = "clean"


# -- 2. The attack: one step of epsilon along the sign of the images' gradient, to valid pixels


def sign_step(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    pixels = (images * STD + MEAN + epsilon * gradient.sign()).clamp(0, 1)
    return (pixels - MEAN) / STD


# -- 3. LARS: every layer moves by a share of its own norm


class LARS(torch.optim.Optimizer):
    """The learning rate is inside the momentum; biases and norms are plain SGD without decay."""

    def __init__(self, params, lr, momentum=0.9, weight_decay=5e-5, trust=0.001):
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=weight_decay, trust=trust))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # the adversarial branch in the first step
                    continue
                gradient, ratio = weight.grad, 1.0
                if weight.ndim > 1:
                    w, g, decay = weight.norm(), gradient.norm(), group["decay"]
                    ratio = group["trust"] * w / (g + decay * w) if w * g > 0 else 1.0
                    gradient = gradient + decay * weight
                v = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                v.mul_(group["momentum"]).add_(group["lr"] * ratio * gradient)
                weight.sub_(v)


def lr_factor(step: int, total: int, warmup: int, power: float = 2.0) -> float:
    """Linear warm-up, then polynomial decay."""
    decay = (1 - (step - warmup) / (total - warmup)) ** power
    return (step + 1) / warmup if step < warmup else decay


# -- 4. The loop: train on the images and on the copies of the last step's, in one loss


def train(model, batches, epochs, lr=2.0, epsilon=4 / 255) -> Iterator[tuple[float, float]]:
    """Yields (loss, loss of the clean images alone) after each step."""
    optimizer = LARS(model.parameters(), lr)
    total = epochs * len(batches)
    copies = None  # (images, labels), made in the step before
    for step in range(total):
        images, labels = batches[step % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step, total, warmup=total // 5)
        images = images.clone().requires_grad_()
        loss = clean = F.cross_entropy(forward(model, images, "clean"), labels)
        if copies is not None:
            adversarial = F.cross_entropy(forward(model, copies[0], "adversarial"), copies[1])
            share = len(copies[0]) / (len(images) + len(copies[0]))  # every image counts the same
            loss = (1 - share) * clean + share * adversarial
        loss.backward()  # for the weights, and by the way for the images
        copies = sign_step(images.detach(), images.grad, epsilon), labels
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item(), clean.item()


# -- 5. Something to train: which way do the stripes run?


def stripes(count: int, classes: int = 8, size: int = 16) -> tuple[Tensor, Tensor]:
    labels = torch.randint(classes, (count,))
    angle = (torch.pi * labels / classes).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = 2 * torch.pi * torch.rand(count, 1, 1)
    waves = torch.sin(x * angle.cos() + y * angle.sin() + phase)
    pixels = (0.5 + 0.2 * waves + 0.25 * torch.randn(count, size, size)).clamp(0, 1)
    return ((pixels - MEAN) / STD).unsqueeze(1), labels


def network(classes: int = 8) -> nn.Module:
    block = [nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()]
    block += [nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="ten steps, to see that it runs")
    options = parser.parse_args()
    images, labels = stripes(64 if options.smoke else 5000)
    batches = list(zip(images.split(options.batch), labels.split(options.batch), strict=True))
    model = split_norms(network())
    for step, (loss, clean) in enumerate(train(model, batches, options.epochs)):
        if step % 20 == 0:
            print(f"step {step}: loss {loss:.3f}, clean {clean:.3f}")
    images, labels = stripes(2000)
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    print(f"test accuracy {accuracy:.1%}")
